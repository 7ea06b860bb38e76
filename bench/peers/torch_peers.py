"""What torch (cuBLAS underneath) needs for the benchmark's cases: CUDA graph replay over rotated inputs, median.

torch_peers.py FILE: a case a line, "op case", as gpu_bench --list prints them; those without a torch form are passed
over. Prints a line of JSON a measurement: {op, case, peer, us}."""
import json
import re
import sys
import time

import torch

REPETITIONS = 15
ROTATED_BYTES = 400e6  # so that inputs do not lie in the L2 cache


def graph_us(calls):
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for i in range(REPETITIONS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[len(times) // 2]


def copies(size):
    return max(2, min(24, int(ROTATED_BYTES / size) + 1))


def gemm(m, n, k):
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(2 if m >= 1024 else copies(n * k * 2))]
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    if m >= 1024:  # as gpu_bench does: under such load the clocks fall within a tenth of a second
        torch.cuda.synchronize()
        time.sleep(1)
    yield "cuBLAS", [lambda w=w: torch.matmul(x, w.t(), out=out) for w in weights]


def sampling(name, rows, vocab=151936):
    logits = [torch.randn(rows, vocab, device="cuda") * 3 for _ in range(copies(rows * vocab * 4))]
    if name == "greedy":
        yield "torch argmax", [lambda y=y: torch.argmax(y, -1) for y in logits]
    if name == "no-filter":
        yield "torch multinomial", [lambda y=y: torch.multinomial(torch.softmax(y / 0.8, -1), 1) for y in logits[:4]]


def topk(n, k, rows):
    logits = [torch.randn(rows, n, device="cuda") for _ in range(min(4, copies(rows * n * 4)))]
    yield "torch.topk", [lambda y=y: torch.topk(y, k) for y in logits]


def rms_norm(rows, n):
    x = [torch.randn(rows, n, device="cuda") for _ in range(copies(rows * n * 6))]
    weight = torch.randn(n, device="cuda")
    norm = torch.nn.functional.rms_norm
    yield "torch rms_norm", [lambda y=y: norm(y, (n,), weight, 1e-5).to(torch.bfloat16) for y in x]


FORMS = (
    (r"gemm_bf16 m(\d+)-(\d+)x(\d+)", lambda m: gemm(*map(int, m.groups()))),
    (r"sampling (greedy|no-filter)-b(\d+)", lambda m: sampling(m[1], int(m[2]))),
    (r"topk_per_row n(\d+)-k(\d+)-r(\d+)", lambda m: topk(*map(int, m.groups()))),
    (r"rms_norm (\d+)x(\d+)", lambda m: rms_norm(*map(int, m.groups()))),
)


def main():
    torch.manual_seed(0)
    with open(sys.argv[1]) as file:
        wanted = file.read().splitlines()
    for line in wanted:
        for pattern, form in FORMS:
            match = re.fullmatch(pattern, line.strip())
            if not match:
                continue
            op, case = line.split()
            for peer, calls in form(match):
                try:
                    us = round(graph_us(calls), 2)
                except RuntimeError as error:
                    print(f"{line}: {peer}: {error}", file=sys.stderr)
                    continue
                print(json.dumps({"op": op, "case": case, "peer": peer, "us": us}), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
