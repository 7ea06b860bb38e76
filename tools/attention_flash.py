#!/usr/bin/env python3
"""Answers of FlashAttention and cuDNN for tools/attention_error.cpp: python3 tools/attention_flash.py FOLDER

Needs PyTorch with CUDA. Leaves FOLDER/<backend>-<head_dim>-<sharpness>.bin: one causal head of 4096 keys in bf16,
sampled rows of it, and what scaled_dot_product_attention gives for them when only that backend is allowed. A backend
that does not take a head size has no file for it.
"""

import pathlib
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

KEYS = 4096
ROWS = 64
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.int16).cpu().numpy().tobytes()


def write(folder: pathlib.Path, dim: int, sharpness: int) -> None:
    torch.manual_seed(dim)
    amplitude = sharpness**0.5
    q, k, v = (torch.randn(1, 1, KEYS, dim, device="cuda") for _ in range(3))
    q, k, v = (x.to(torch.bfloat16) for x in (q * amplitude, k * amplitude, v))
    rows = torch.randperm(KEYS, device="cuda")[:ROWS].sort().values
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        except RuntimeError as error:
            print(f"{name}, head size {dim}: {error}", file=sys.stderr)
            continue
        with open(folder / f"{name}-{dim}-{sharpness}.bin", "wb") as file:
            file.write(torch.tensor([dim, KEYS, ROWS], dtype=torch.int32).numpy().tobytes())
            file.write(rows.to(torch.int32).cpu().numpy().tobytes())
            for part in (q[0, 0, rows], k, v, out[0, 0, rows]):
                file.write(raw(part))


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for dim in (64, 128, 256):
        for sharpness in (1, 4):
            write(folder, dim, sharpness)


if __name__ == "__main__":
    main()
