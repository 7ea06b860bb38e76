#!/usr/bin/env python3
"""llama.cpp as a peer, driven over stdin: `isobit bench cpu` runs it in turn with itself.

usage: llama_cpp_peer.py MODEL THREADS CONTEXT. Then a line a job: `prefill N` or `decode CONTEXT COUNT`; each answers with the
seconds it took (of the N-token prefill, or of COUNT decoded tokens after CONTEXT). `rss` answers with the peak resident KiB.
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


def main():
    model, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    llm = llama_cpp.Llama(model_path=model, n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)
    print("ready", llama_cpp.__version__, file=answers, flush=True)
    for line in sys.stdin:
        job = line.split()
        if job[0] == "rss":
            print(peak_resident_kib(), file=answers, flush=True)
            continue
        count = int(job[1])
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
