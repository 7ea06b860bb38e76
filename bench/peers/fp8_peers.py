"""Peers of the block-scaled FP8 GEMM: cuBLASLt through torch, and DeepGEMM where it can be imported. CUDA graph replay
over rotated weights, median.

fp8_peers.py FILE: a case a line, "op case", as gpu_bench --list prints them; others than gemm_fp8 are passed over.
Prints a line of JSON a measurement: {op, case, peer, us}."""
import json
import re
import sys
import time

import torch

from torch_peers import copies, graph_us

try:
    import deep_gemm
except ImportError:
    deep_gemm = None
try:
    from torch.nn.functional import ScalingType, scaled_mm
except ImportError:
    scaled_mm = None

BLOCK = 128


def padded(x, multiple):
    """The last dimension filled up with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % multiple))


def quantise_rows(x):
    """e4m3 and one scale per row and block: [m, k], [m, k / 128]."""
    m, k = x.shape
    blocks = x.float().view(m, k // BLOCK, BLOCK)
    scale = blocks.abs().amax(2).clamp(1e-8) / 448
    return (blocks / scale[..., None]).to(torch.float8_e4m3fn).view(m, k), scale


def quantise_blocks(w):
    """e4m3 and one scale per 128 × 128: [n, k], [n / 128, k / 128]."""
    n, k = w.shape
    full = torch.zeros(-(-n // BLOCK) * BLOCK, k, device=w.device)
    full[:n] = w.float()
    blocks = full.view(-1, BLOCK, k // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp(1e-8) / 448
    q = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(-1, k)
    return q[:n].contiguous(), scale


def gemm(m, n, k):
    x, x_scale = quantise_rows(torch.randn(m, k, device="cuda"))
    w, w_scale = quantise_blocks(torch.randn(n, k, device="cuda"))
    weights = [w.clone() for _ in range(2 if m >= 1024 else copies(n * k))]
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    m_major = padded(x_scale.t().contiguous(), 4).t()[:m]
    if deep_gemm is not None:
        yield "DeepGEMM", [lambda w=w: deep_gemm.fp8_gemm_nt((x, m_major), (w, w_scale), out) for w in weights]
    if scaled_mm is not None and m % 4 == 0:
        k_major = padded(w_scale, 4).t()[: k // BLOCK]
        yield "cuBLASLt", [
            lambda w=w: scaled_mm(x, w.t(), m_major, ScalingType.BlockWise1x128, k_major, ScalingType.BlockWise128x128,
                                  output_dtype=torch.bfloat16)
            for w in weights
        ]


def main():
    torch.manual_seed(0)
    with open(sys.argv[1]) as file:
        wanted = file.read().splitlines()
    for line in wanted:
        match = re.fullmatch(r"gemm_fp8 (m(\d+)-(\d+)x(\d+))", line.strip())
        if not match:
            continue
        for peer, calls in gemm(*map(int, match.groups()[1:])):
            torch.cuda.synchronize()
            time.sleep(0.3)  # as gpu_bench does: seconds of many rows make the clocks fall
            try:
                us = round(graph_us(calls), 2)
            except RuntimeError as error:
                print(f"{line}: {peer}: {str(error)[:200]}", file=sys.stderr)
                continue
            print(json.dumps({"op": "gemm_fp8", "case": match[1], "peer": peer, "us": us}), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
