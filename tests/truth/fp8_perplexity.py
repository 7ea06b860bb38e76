#!/usr/bin/env python3
"""What `isobit quantize --to fp8` costs a model in perplexity over tests/truth/texts.

fp8_perplexity.py [--isobit PROGRAM] [--model MODEL] [--keep NAME ...] [--texts NAME ...]

Every text is one window. Fails where the perplexity of all tokens grows by more than 1%.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

TEXTS = pathlib.Path(__file__).parent / "texts"
BOUND = 0.01


def log_probabilities(isobit, model, text):
    answer = subprocess.run([isobit, "score", "-m", model, str(text), "--json", "-c", "2048"], check=True, capture_output=True)
    return json.loads(answer.stdout)["logprobs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isobit", default="isobit", help="the program (%(default)s)")
    parser.add_argument("--model", default="smollm2", help="a model's name or path (%(default)s)")
    parser.add_argument("--keep", nargs="*", default=[], help="what quantize is to leave as it is, instead of its default")
    parser.add_argument("--texts", nargs="*", help="names of texts, without .txt; all where none is named")
    a = parser.parse_args()
    paths = [p for p in sorted(TEXTS.glob("*.txt")) if not a.texts or p.name.removesuffix(".txt") in a.texts]
    before, after = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(pathlib.Path(scratch) / "fp8")
        subprocess.run([a.isobit, "quantize", a.model, "--to", "fp8", "-o", folder, *(["--keep", *a.keep] if a.keep else [])],
                       check=True, stdout=subprocess.DEVNULL)
        for path in paths:
            plain, fp8 = log_probabilities(a.isobit, a.model, path), log_probabilities(a.isobit, folder, path)
            growth = math.exp((sum(plain) - sum(fp8)) / len(plain)) - 1
            print(f"{path.name.removesuffix('.txt'):18} {len(plain):5} tokens {100 * growth:+.2f}%", flush=True)
            before += plain
            after += fp8
    plain, fp8 = (math.exp(-sum(x) / len(x)) for x in (before, after))
    print(f"{a.model}: {len(before)} tokens, perplexity {plain:.4f}, in FP8 {fp8:.4f}, {100 * (fp8 / plain - 1):+.2f}%")
    if fp8 > plain * (1 + BOUND):
        sys.exit(f"the bound is +{100 * BOUND:.0f}%")


if __name__ == "__main__":
    main()
