#!/usr/bin/env python3
"""cuBLAS (through PyTorch) on the rows gemm_bf16: graph replay over rotated weights, median.

Prints one JSON row a case: {"op", "case", "peer": "cublas", "us"}. Needs PyTorch with CUDA and a GPU.
Usage: gemm_torch.py [filter ...]
"""
import json
import statistics
import sys

import torch

SHAPES = [(4096, 4096), (28672, 4096), (4096, 14336), (7168, 2048)]
CASES = [(m, n, k) for n, k in SHAPES for m in (1, 16, 64, 4096)]
CASES += [(128, 4096, 4096), (256, 4096, 4096), (8192, 8192, 8192)]


def copies(m, n, k):
    """Weights to rotate over, so that none is found in the L2."""
    return 2 if m >= 1024 else max(2, min(24, 400_000_000 // (2 * n * k) + 1))


def median_us(m, n, k, repetitions=15):
    generator = torch.Generator(device="cuda").manual_seed(1)
    x = torch.empty(m, k, device="cuda").uniform_(-1, 1, generator=generator).bfloat16()
    weights = [
        torch.empty(n, k, device="cuda").uniform_(-1, 1, generator=generator).bfloat16()
        for _ in range(copies(m, n, k))
    ]
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)

    def calls():
        for w in weights:
            torch.mm(x, w.t(), out=out)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    # The clocks rise over milliseconds: replay for 20 ms before the first reading, and read for as long again.
    times, warm, read = [], 0.0, 0.0
    while len(times) < repetitions or (read < 20e3 and len(times) < 400):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        us = begin.elapsed_time(end) * 1e3
        if warm < 20e3:
            warm += us + 1
            continue
        read += us
        times.append(us / len(weights))
    return statistics.median(times)


def main():
    filters = sys.argv[1:]
    for m, n, k in CASES:
        case = f"m{m}-{n}x{k}"
        if filters and not any(f in f"gemm_bf16 {case}" for f in filters):
            continue
        row = {"op": "gemm_bf16", "case": case, "peer": "cublas", "us": round(median_us(m, n, k), 2)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
