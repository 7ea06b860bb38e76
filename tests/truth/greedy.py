#!/usr/bin/env python3
"""Greedy answers to twenty prompts, isobit beside llama.cpp: where they part, and by how small a margin.

At the first token that differs, the float64 reference and llama.cpp's own logits say how far the two candidates are apart
there. Prints a table and writes a JSON file; nothing is asserted, for two right engines may part at a near tie.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import llama_cpp
import numpy as np

from reference import Reference

SYSTEM = "You are a helpful assistant."
PROMPTS = [
    "Why is the sky blue?",
    "Name three rivers in Africa.",
    "Write a haiku about rain.",
    "What is 17 times 6?",
    "Explain what a prime number is to a child.",
    "Translate to French: The book is on the table.",
    "Give me a recipe for pancakes.",
    "Who wrote Hamlet, and when?",
    "List the planets from the Sun outward.",
    "Write a Python function that reverses a string.",
    "What causes the seasons?",
    "Summarise the story of Romeo and Juliet in two sentences.",
    "What is the difference between a virus and a bacterium?",
    "Suggest a name for a bakery by the sea.",
    "How do I remove a coffee stain?",
    "Qu'est-ce qu'un volcan ?",
    "Was ist die Hauptstadt von Australien?",
    "Complete: The quick brown fox",
    "Why do cats purr?",
    "Write an SQL query that counts orders by customer.",
]


def isobit_answer(isobit, model, prompt, count):
    command = [isobit, "run", "--model", model, prompt, "--system", SYSTEM, "--temp", "0", "-n", str(count), "--json", "--device", "cpu"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def llama_answer(llm, prompt, count):
    """Greedy tokens and each step's logits."""
    llm.reset()
    llm.eval(prompt)
    tokens, rows = [], []
    for _ in range(count):
        rows.append(llm.scores[llm.n_tokens - 1].astype(np.float64).copy())
        tokens.append(int(rows[-1].argmax()))
        if tokens[-1] == llm.token_eos():
            break
        llm.eval([tokens[-1]])
    return tokens, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isobit", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", help="JSON file to write")
    a = parser.parse_args()
    llm = llama_cpp.Llama(model_path=a.model, n_ctx=512, n_batch=512, logits_all=True, verbose=False)
    reference = Reference(a.model)
    rows = []
    for text in PROMPTS:
        written = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        prompt = llm.tokenize(written.encode(), add_bos=False, special=True)
        own = isobit_answer(a.isobit, a.model, text, a.tokens)
        assert own["prompt_tokens"] == len(prompt), f"{text}: the prompts differ"
        theirs, logits = llama_answer(llm, prompt, a.tokens)
        row = {"prompt": text, "tokens": len(own["tokens"]), "bits": own["bits"], "parts_at": None}
        at = next((i for i, (x, y) in enumerate(zip(own["tokens"], theirs)) if x != y), None)
        if at is not None:
            exact = reference.log_probabilities(prompt + theirs[:at])[-1]
            x, y = own["tokens"][at], theirs[at]
            row |= {
                "parts_at": at,
                "isobit": llm.detokenize([x]).decode(errors="replace"),
                "llama.cpp": llm.detokenize([y]).decode(errors="replace"),
                "llama.cpp_margin": float(logits[at][y] - logits[at][x]),
                "float64_margin": float(exact[x] - exact[y]),  # positive: the reference sides with isobit
            }
        rows.append(row)
        print(f"{text}: {'equal' if at is None else f'parts at {at}'}", file=sys.stderr)
    print_table(rows)
    if a.out:
        result = {"command": "tests/truth/run_accuracy", "model": pathlib.Path(a.model).name, "tokens": a.tokens,
                  "llama_cpp_python": llama_cpp.__version__, "prompts": rows}
        pathlib.Path(a.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def print_table(rows):
    parted = [r for r in rows if r["parts_at"] is not None]
    print(f"\n{len(rows) - len(parted)} of {len(rows)} answers are the same token for token; where the others part:\n")
    print("| prompt | at token | isobit | llama.cpp | llama.cpp's margin | float64's margin for isobit |")
    print("|---|---|---|---|---|---|")
    for r in parted:
        print(f"| {r['prompt']} | {r['parts_at']} | {r['isobit']!r} | {r['llama.cpp']!r} | {r['llama.cpp_margin']:.3f} "
              f"| {r['float64_margin']:+.3f} |")


if __name__ == "__main__":
    main()
