#!/usr/bin/env python3
"""The field's determinism test against a running server: the same prompt must give the same bits in whatever batch it runs.

usage: determinism.py URL [--mode single|mixed|prefix|all] [--trials N] [--largest B] [--lengths 1,511,2048,4097] [--long 1000]
                      [--tokens N] [--temperature T] [--seed S] [--json FILE]

It drives SGLang's /generate (text or input_ids, sampling_params, sampling_seed), so it runs against any server that has that. Every
sample is a request of its own; a trial sends a random batch of them at once. Compared are tokens and log-probabilities, by bytes.
  single: one prompt, in batches of 1 to `largest`.
  mixed:  a short, a middle and a long prompt in random proportions.
  prefix: prompts that share the first 1, 511, 2048, 4097 … tokens of one text, in random batches, with the cache flushed before
          every other trial (cold and warm).
Exit code: 0 when each prompt has one answer, 1 otherwise.
"""
import argparse
import collections
import concurrent.futures
import http.client
import json
import random
import struct
import sys
import time
import urllib.parse

SHORT = "Why is the sky blue?"
MIDDLE = "Write a story of a lighthouse keeper who finds a bottle on the beach. Begin with the storm, end with the letter. " * 4
WORDS = ("river stone lantern winter market copper garden letter harbor engine silver forest window bridge music paper ocean candle "
         "mirror thunder violet kitchen feather compass orchard").split()


class Client:
    def __init__(self, url, options):
        self.url, self.options = urllib.parse.urlsplit(url), options
        self.pool = concurrent.futures.ThreadPoolExecutor(options.largest)

    def post(self, path, body):
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=600)
        try:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise RuntimeError(f"{path}: {response.status} {text[:300]!r}")
            return json.loads(text)
        finally:
            connection.close()

    def sample(self, ids):
        o = self.options
        params = {"temperature": o.temperature, "max_new_tokens": o.tokens, "sampling_seed": o.seed, "ignore_eos": True}
        a = self.post("/generate", {"input_ids": ids, "return_logprob": True, "sampling_params": params})
        return b"".join(struct.pack("<if", t, v) for v, t, *_ in a["meta_info"]["output_token_logprobs"])

    def batch(self, prompts):
        return list(self.pool.map(self.sample, prompts))

    def tokens(self, text):
        return self.post("/tokenize", {"prompt": text})["tokens"]

    def flush(self):
        self.post("/flush_cache", {})


class Tally:
    """How many different answers each prompt got."""

    def __init__(self, mode):
        self.mode, self.answers, self.start = mode, collections.defaultdict(collections.Counter), time.monotonic()

    def add(self, keys, answers):
        for key, answer in zip(keys, answers):
            self.answers[key][answer] += 1

    def show(self, trial, trials):
        if sys.stderr.isatty():
            print(f"\r{self.mode}: trial {trial}/{trials}, {sum(map(len, self.answers.values()))} answers of "
                  f"{len(self.answers)} prompts ", end="", file=sys.stderr, flush=True)

    def result(self):
        rows = {key: {"samples": sum(c.values()), "unique": len(c)} for key, c in self.answers.items()}
        return {"mode": self.mode, "seconds": round(time.monotonic() - self.start, 1), "prompts": rows,
                "passed": all(r["unique"] == 1 for r in rows.values())}


def single(client, o, rng):
    tally, ids = Tally("single"), client.tokens(SHORT)
    sizes = list(range(1, o.largest + 1)) if o.trials >= o.largest else sorted({1, 2, o.largest, *rng.choices(range(1, o.largest + 1), k=o.trials)})
    for i, n in enumerate(sizes):
        tally.add(["short"] * n, client.batch([ids] * n))
        tally.show(i + 1, len(sizes))
    return tally.result()


def mixed(client, o, rng):
    tally = Tally("mixed")
    prompts = {"short": client.tokens(SHORT), "middle": client.tokens(MIDDLE), "long": long_text(client, o.long)[:o.long]}
    for i in range(o.trials):
        keys = rng.choices(list(prompts), k=rng.randint(1, o.largest))
        tally.add(keys, client.batch([prompts[k] for k in keys]))
        tally.show(i + 1, o.trials)
    return tally.result()


def long_text(client, tokens):
    rng, ids, text = random.Random(1), [], ""
    while len(ids) < tokens:
        text += " ".join(rng.choices(WORDS, k=tokens)) + ". "
        ids = client.tokens(text)
    return ids


def prefix(client, o, rng):
    tally, ids = Tally("prefix"), long_text(client, max(o.lengths) + 1)
    prompts = {str(n): ids[:n] + client.tokens(" In one word, this was about") for n in o.lengths}
    for i in range(o.trials):
        if i % 2 == 0:
            client.flush()
        keys = rng.choices(list(prompts), k=rng.randint(1, o.largest))
        tally.add(keys, client.batch([prompts[k] for k in keys]))
        tally.show(i + 1, o.trials)
    return tally.result()


MODES = {"single": single, "mixed": mixed, "prefix": prefix}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url")
    p.add_argument("--mode", choices=[*MODES, "all"], default="all")
    p.add_argument("--trials", type=int, default=50)
    p.add_argument("--largest", type=int, default=128)
    p.add_argument("--lengths", type=lambda t: [int(n) for n in t.split(",")], default=[1, 511, 2048, 4097])
    p.add_argument("--tokens", type=int, default=100)
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--long", type=int, default=1000, help="tokens of mixed's long prompt")
    p.add_argument("--seed", type=int, default=42)
    p.add_argument("--batches", type=int, default=random.SystemRandom().getrandbits(32), help="seed of the batches")
    p.add_argument("--json")
    o = p.parse_args()
    client, rng = Client(o.url, o), random.Random(o.batches)
    print(f"batches drawn from seed {o.batches}")
    results = []
    for name in MODES if o.mode == "all" else [o.mode]:
        r = MODES[name](client, o, rng)
        results.append(r)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        rows = ", ".join(f"{key}: {v['samples']} samples, {v['unique']} unique" for key, v in r["prompts"].items())
        print(f"{name}: {'passed' if r['passed'] else 'FAILED'} ({rows}; {r['seconds']} s)", flush=True)
    if o.json:
        with open(o.json, "w") as f:
            json.dump({"url": o.url, "batches": o.batches, "options": vars(o), "results": results}, f, indent=1)
    sys.exit(0 if all(r["passed"] for r in results) else 1)


if __name__ == "__main__":
    main()
