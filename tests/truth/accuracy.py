#!/usr/bin/env python3
"""How far isobit's log-probabilities are from the exact model's, llama.cpp's beside them. See run_accuracy.

Every text of tests/truth/texts is one sequence, or several joined are (--join); each token is scored given those before it.
Prints a table, writes a JSON file, and fails when a bound is missed: perplexity within 0.1% of the float64 reference (Gemma's
0.5%), mean |difference| of a token's log-probability at most 0.020, the same likeliest token in at least 98.5%.
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

from reference import Reference, scores_of_rows

TEXTS = pathlib.Path(__file__).parent / "texts"
BOUNDS = {"perplexity_error": 0.001, "mean_difference": 0.020, "same_top1": 0.985}
GEMMA_BOUNDS = {"perplexity_error": 0.005}


def isobit_scores(isobit, model, tokens, threads):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump([int(t) for t in tokens], f)
        f.flush()
        command = [isobit, "score", "--model", model, "--tokens", f.name, "--json", "-c", str(len(tokens)), "--device", "cpu",
                   "--threads", str(threads or 0)]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert answer["tokens"] == tokens[1:]
    return np.array(answer["logprobs"]), np.array(answer["argmax"]), answer["contract"]


def llama_scores(llm, tokens):
    llm.reset()
    llm.eval(tokens)
    return scores_of_rows(lambda begin, end: llm.scores[begin:end].astype(np.float64), tokens)


def sequences(llm, bos, names, join):
    """(name, tokens) of each text, or of texts joined until they have `join` tokens."""
    tokens, joined = [], []
    for path in sorted(TEXTS.glob("*.txt")):
        name = path.name.removesuffix(".txt")
        if names and name not in names:
            continue
        tokens += llm.tokenize(path.read_bytes(), add_bos=bos and not tokens)
        joined.append(name)
        if len(tokens) >= join:
            yield "+".join(joined), tokens
            tokens, joined = [], []
    if tokens:
        yield "+".join(joined), tokens


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
    parser.add_argument("--join", type=int, default=0, help="join texts until they have so many tokens (%(default)s)")
    parser.add_argument("--threads", type=int, help="of isobit and of llama.cpp; all there are where none is given")
    parser.add_argument("--out", help="JSON file to write")
    a = parser.parse_args()
    llm = llama_cpp.Llama(model_path=a.model, n_ctx=2048, n_batch=512, n_threads_batch=a.threads, logits_all=True, verbose=False)
    reference = Reference(a.model)
    bounds = GEMMA_BOUNDS if reference.gemma else BOUNDS
    names, columns, contract = [], {"isobit": [], "llama.cpp": [], "reference": []}, ""
    for name, tokens in sequences(llm, reference.gemma, a.texts, a.join):
        columns["reference"].append(reference.scores(tokens))
        scores, best, contract = isobit_scores(a.isobit, a.model, tokens, a.threads)
        columns["isobit"].append((scores, best))
        columns["llama.cpp"].append(llama_scores(llm, tokens))
        names.append(name)
        print(f"{name}: {len(tokens) - 1} tokens", file=sys.stderr)
    joined = {name: [np.concatenate(x) for x in zip(*parts)] for name, parts in columns.items()}
    result = {
        "command": "tests/truth/run_accuracy" + (" gemma3-270m" if reference.gemma else ""),
        "joined_tokens": a.join,
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
