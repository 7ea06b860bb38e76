#!/usr/bin/env python3
"""Writes the seed corpus of safetensors_fuzz: corpus/safetensors/ok_* are valid, bad_* are not. Needs Python 3 alone."""
import json
import pathlib
import struct


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header, size, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(i % 251 for i in range(size))


def files():
    two = {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 2], 0, 16), "b": tensor("BF16", [3], 16, 22)}
    yield "ok_empty", file({}, 0)
    yield "ok_two", file(two, 22)
    yield "ok_types", file({"i": tensor("I64", [], 0, 8), "e": tensor("F16", [0, 2], 8, 8), "x": tensor("F4", [3], 8, 10)}, 10)
    yield "ok_padded", file(json.dumps(two).encode() + b"     ", 22)
    yield "ok_escapes", file(b'{"\\u00e9\\ud83d\\ude00":' + json.dumps(tensor("F16", [1], 0, 2)).encode() + b"}", 2)
    yield "bad_nothing", b""
    yield "bad_length", file(two, 22, 1 << 62)
    yield "bad_cut", file(two, 21)
    yield "bad_hole", file({"a": tensor("F32", [1], 4, 8)}, 8)
    yield "bad_overlap", file({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [1], 4, 8)}, 8)
    yield "bad_product", file({"a": tensor("F32", [1 << 32, 1 << 32], 0, 0)}, 0)
    yield "bad_size", file({"a": tensor("F32", [3], 0, 8)}, 8)
    yield "bad_nesting", file(b"{" + b"[" * 200, 0)
    yield "bad_utf8", file(b'{"\xff": {}}', 0)


def main():
    folder = pathlib.Path(__file__).with_name("corpus") / "safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files():
        (folder / f"{name}.safetensors").write_bytes(data)
    print(f"{folder.name}: {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    main()
