#!/usr/bin/env python3
"""How far isobit's log-probabilities are from the exact model's, llama.cpp's beside them. See run_accuracy.

Every text of tests/truth/texts is one window; each token is scored given those before it. Prints a table, writes a JSON file,
and fails when a bound is missed: perplexity within 0.1% of the float64 reference (Gemma's 0.5%), mean |difference| of a token's
log-probability at most 0.020, the same likeliest token in at least 98.5%.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

from reference import Reference

TEXTS = pathlib.Path(__file__).parent / "texts"
BOUNDS = {"perplexity_error": 0.001, "mean_difference": 0.020, "same_top1": 0.985}
GEMMA_BOUNDS = {"perplexity_error": 0.005}


def isobit_scores(isobit, model, tokens):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump([int(t) for t in tokens], f)
        f.flush()
        command = [isobit, "score", "--model", model, "--tokens", f.name, "--json", "-c", str(len(tokens)), "--device", "cpu"]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert answer["tokens"] == tokens[1:]
    return np.array(answer["logprobs"]), np.array(answer["argmax"]), answer["contract"]


def llama_scores(llm, tokens):
    llm.reset()
    llm.eval(tokens)
    logits = llm.scores[: len(tokens) - 1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits[np.arange(len(tokens) - 1), tokens[1:]], logits.argmax(axis=1)


def compare(got, best, want, want_best):
    difference = np.abs(got - want)
    perplexity, exact = math.exp(-got.mean()), math.exp(-want.mean())
    return {
        "perplexity": perplexity,
        "perplexity_error": abs(perplexity / exact - 1),
        "mean_difference": float(difference.mean()),
        "p99_difference": float(np.quantile(difference, 0.99)),
        "largest_difference": float(difference.max()),
        "same_top1": float((best == want_best).mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isobit", required=True)
    parser.add_argument("--model", required=True, help="a GGUF file of the llama or gemma3 architecture")
    parser.add_argument("--texts", nargs="*", help="names of texts, without .txt; all where none is named")
    parser.add_argument("--out", help="JSON file to write")
    a = parser.parse_args()
    llm = llama_cpp.Llama(model_path=a.model, n_ctx=2048, n_batch=512, logits_all=True, verbose=False)
    reference = Reference(a.model)
    bounds = GEMMA_BOUNDS if reference.gemma else BOUNDS
    names, columns, contract = [], {"isobit": [], "llama.cpp": [], "reference": []}, ""
    for path in sorted(TEXTS.glob("*.txt")):
        if a.texts and path.name.removesuffix(".txt") not in a.texts:
            continue
        tokens = llm.tokenize(path.read_bytes(), add_bos=reference.gemma)
        exact = reference.log_probabilities(tokens)[:-1]
        columns["reference"].append((exact[np.arange(len(tokens) - 1), tokens[1:]], exact.argmax(axis=1)))
        scores, best, contract = isobit_scores(a.isobit, a.model, tokens)
        columns["isobit"].append((scores, best))
        columns["llama.cpp"].append(llama_scores(llm, tokens))
        names.append(path.name.removesuffix(".txt"))
        print(f"{names[-1]}: {len(tokens) - 1} tokens", file=sys.stderr)
    joined = {name: [np.concatenate(x) for x in zip(*parts)] for name, parts in columns.items()}
    result = {
        "command": "tests/truth/run_accuracy",
        "model": pathlib.Path(a.model).name,
        "contract": contract,
        "llama_cpp_python": llama_cpp.__version__,
        "texts": {n: len(s[0]) for n, s in zip(names, columns["reference"])},
        "tokens": len(joined["reference"][0]),
        "reference_perplexity": math.exp(-joined["reference"][0].mean()),
        "bounds": bounds,
    }
    for name in ("isobit", "llama.cpp"):
        result[name] = compare(*joined[name], *joined["reference"])
        result[name]["texts"] = {n: compare(*s, *r) for n, s, r in zip(names, columns[name], columns["reference"])}
    print_table(result)
    if a.out:
        pathlib.Path(a.out).write_text(json.dumps(result, indent=1) + "\n")
    own = result["isobit"]
    missed = [b for b, limit in bounds.items() if (own[b] < limit if b == "same_top1" else own[b] > limit)]
    if missed:
        sys.exit(f"missed: {', '.join(f'{b} is {own[b]:.5f}, the bound is {bounds[b]}' for b in missed)}")


def print_table(r):
    print(f"{r['model']}, {r['tokens']} tokens of {len(r['texts'])} texts, against float64")
    print(f"float64 perplexity {r['reference_perplexity']:.4f}\n")
    print("| | perplexity | its error | mean \\|Δ log p\\| | 99% below | largest | same top-1 |")
    print("|---|---|---|---|---|---|---|")
    for name in ("isobit", "llama.cpp"):
        x = r[name]
        print(f"| {name} | {x['perplexity']:.4f} | {100 * x['perplexity_error']:.3f}% | {x['mean_difference']:.4f} "
              f"| {x['p99_difference']:.3f} | {x['largest_difference']:.3f} | {100 * x['same_top1']:.2f}% |")


if __name__ == "__main__":
    main()
