#!/usr/bin/env python3
"""llama.cpp as a peer, driven over stdin: `isobit bench cpu` and `isobit bench throughput` run it beside themselves.

usage: llama_cpp_peer.py MODEL THREADS CONTEXT [USERS]. Then a line a job: `prefill N` or `decode CONTEXT COUNT`; each answers with
the seconds it took (of the N-token prefill, or of COUNT decoded tokens after CONTEXT). `batch INPUT OUTPUT`: the seconds that USERS
prompts of INPUT tokens and their greedy answers of OUTPUT tokens took together. `rss` answers with the peak resident KiB.
Needs llama-cpp-python.
"""
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the library prints to stdout

import llama_cpp  # noqa: E402


def peak_resident_kib():
    # Not getrusage: its maximum outlives exec, so that it would include the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


class Batch:
    """All users in one context with a cache each, as llama-server's slots: a step holds 512 tokens of prompts, or one of each user."""
    STEP = 512

    def __init__(self, llm, users, context):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = users * context, users, False
        params.n_batch = params.n_ubatch = self.STEP
        params.n_threads = params.n_threads_batch = llm.n_threads
        self.users, self.context = users, llama_cpp.llama_init_from_model(llm.model, params)
        self.batch = llama_cpp.llama_batch_init(self.STEP, 0, 1)
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def step(self, rows):
        """rows: (user, position, token, whether to sample behind it); returns {user: token}."""
        b, b.n_tokens = self.batch, len(rows)
        for i, (user, position, token, sample) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, position, 1, user, sample
        if llama_cpp.llama_decode(self.context, b) != 0:
            raise RuntimeError("llama_decode failed")
        return {user: llama_cpp.llama_sampler_sample(self.sampler, self.context, i)
                for i, (user, _, _, sample) in enumerate(rows) if sample}

    def run(self, count, answer):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start = time.perf_counter()
        rows = [(u, i, (i * 7919 + u * 104729 + 13) % 40000 + 100, i + 1 == count) for u in range(self.users) for i in range(count)]
        last = {}
        for i in range(0, len(rows), self.STEP):
            last |= self.step(rows[i:i + self.STEP])
        for position in range(count, count + answer - 1):
            last = self.step([(user, position, token, True) for user, token in last.items()])
        return time.perf_counter() - start


def main():
    model, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    users, batch = int(sys.argv[4]) if len(sys.argv) > 4 else 1, None
    llm = llama_cpp.Llama(model_path=model, n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)
    print("ready", llama_cpp.__version__, file=answers, flush=True)
    for line in sys.stdin:
        job = line.split()
        if job[0] == "rss":
            print(peak_resident_kib(), file=answers, flush=True)
            continue
        count = int(job[1])
        if job[0] == "batch":
            batch = batch or Batch(llm, users, context)
            print(batch.run(count, int(job[2])), file=answers, flush=True)
            continue
        llm.reset()
        start = time.perf_counter()
        llm.eval([(i * 7919 + 13) % 40000 + 100 for i in range(count)])
        seconds = time.perf_counter() - start
        if job[0] == "decode":
            start = time.perf_counter()
            for i in range(int(job[2])):
                llm.eval([(i * 104729 + 7) % 40000 + 100])
            seconds = time.perf_counter() - start
        print(seconds, file=answers, flush=True)


main()
