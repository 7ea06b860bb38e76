#!/usr/bin/env python3
"""Writes dequantize_golden.gguf: random blocks of every format beside the f32 values that the `gguf` Python package
(llama.cpp's own reference) gives them. The file holds, per format X, tensors "X.packed" (type X) and "X.f32".

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 && venv/bin/python make_dequantize_golden.py

gguf-py computes each value as our formulas do (scales multiplied first, then the quant, then one add or subtraction, all
in f32), so the bits must be equal; the products are exact, so the order of the multiplications could not matter.
Scales are finite: numpy's NaN has no fixed bits.
"""
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, GGUFWriter, quants

ELEMENTS = 2048
# Byte offsets of the f16 scales in a block.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2],
          T.Q6_K: [208]}


def finite_f16(rng, count):
    """Half of any magnitude from subnormal to 65504, half of a weight's usual size."""
    bits = rng.integers(0, 0x7C00, count, dtype=np.uint16) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
    usual = rng.normal(0, 0.02, count).astype(np.float16).view(np.uint16)
    return np.where(rng.random(count) < 0.5, bits, usual).astype("<u2")


def packed(rng, kind):
    block, size = GGML_QUANT_SIZES[kind]
    if kind in (T.F16, T.BF16):
        data = finite_f16(rng, ELEMENTS) if kind == T.F16 else rng.integers(0, 0x7F80, ELEMENTS, dtype=np.uint16)
        return data.view(np.uint8).reshape(1, -1)
    blocks = rng.integers(0, 256, (ELEMENTS // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        blocks[:, at:at + 2] = finite_f16(rng, len(blocks)).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(1, -1)


def main():
    rng = np.random.default_rng(20240607)
    path = pathlib.Path(__file__).with_name("dequantize_golden.gguf")
    writer = GGUFWriter(path, "golden")
    for kind in [T.F16, T.BF16, *SCALES]:
        data = packed(rng, kind)
        expected = quants.dequantize(data, kind).reshape(1, ELEMENTS).astype(np.float32)
        assert np.isfinite(expected).all()
        writer.add_tensor(f"{kind.name}.packed", data, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.f32", expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
