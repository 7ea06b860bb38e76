#!/usr/bin/env python3
"""Writes the seed corpus of gguf_fuzz: corpus/gguf/ok_* are valid, bad_* are not (weights/corpus_test.cpp holds the
parser to that). Needs Python 3 alone; writes the format by hand, independently of the tests' C++ builder."""
import pathlib
import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
# number: (elements, bytes) of a block
TYPES = {0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
         12: (256, 144), 13: (256, 176), 14: (256, 210), 17: (256, 74)}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, v):
    if kind == STR:
        return text(v)
    if kind == ARR:
        element, items = v
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, i) for i in items)
    return struct.pack("<" + PACK[kind], v)


def pair(key, kind, v):
    return text(key) + struct.pack("<I", kind) + value(kind, v)


def pad(data, alignment):
    return data + bytes(-len(data) % alignment)


def gguf(pairs=(), tensors=(), version=3, magic=b"GGUF", alignment=32, counts=None, endian="<"):
    """tensors: (name, type, dimensions) or with an offset as a fourth."""
    table, data = b"", b""
    for name, kind, dims, *offset in tensors:
        data = pad(data, alignment)
        block, size = TYPES.get(kind, (1, 1))
        elements = 1
        for d in dims:
            elements *= d
        table += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset[0] if offset else len(data))
        count = min(elements // block * size, 4096)
        data += bytes((7 * i + 3) % 251 for i in range(count))
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = magic + struct.pack(endian + "IQQ", version, n_tensors, n_pairs) + b"".join(pairs) + table
    return pad(head, alignment) + data if tensors else head


def files():
    every = [pair("a.u8", U8, 200), pair("a.i8", I8, -3), pair("a.u16", U16, 60000), pair("a.i16", I16, -300),
             pair("a.u32", U32, 7), pair("a.i32", I32, -7), pair("a.f32", F32, 1e-5), pair("a.bool", BOOL, 1),
             pair("a.text", STR, "words"), pair("a.u64", U64, 1 << 63), pair("a.i64", I64, -(1 << 63)),
             pair("a.f64", F64, 0.1)]
    arrays = [pair("v.tokens", ARR, (STR, ["a", "", "Ġb", "<|end|>"])), pair("v.types", ARR, (I32, [1, 1, 3])),
              pair("v.scores", ARR, (F32, [0.5, -1.0])), pair("v.flags", ARR, (BOOL, [0, 1])),
              pair("v.bytes", ARR, (U8, [1, 2, 3])), pair("v.empty", ARR, (STR, [])),
              pair("v.nested", ARR, (ARR, [(U32, [1]), (STR, ["x"])]))]
    model = [pair("general.architecture", STR, "llama"), pair("llama.block_count", U32, 1)]
    weights = [(f"t{n}", n, [256, 2] if n >= 12 and n < 30 else [32, 2]) for n in sorted(TYPES)]
    yield "ok_empty", gguf()
    yield "ok_values", gguf(every)
    yield "ok_arrays", gguf(arrays)
    yield "ok_v2", gguf(model + every, [("norm", 0, [4])], version=2)
    yield "ok_alignment", gguf([pair("general.alignment", U32, 64)], [("a", 0, [3]), ("b", 8, [32])], alignment=64)
    for name, kind, dims in weights:
        yield f"ok_type_{kind}", gguf(model, [(name, kind, dims)])
    yield "ok_many", gguf(model, weights[:6])
    yield "ok_scalar", gguf((), [("s", 0, [])])
    yield "ok_four_dimensions", gguf((), [("d", 1, [2, 3, 2, 2])])
    yield "ok_split", gguf([pair("split.count", U16, 2)])

    yield "bad_nothing", b""
    yield "bad_magic", gguf(model, magic=b"GGUG")
    yield "bad_v1", gguf(model, version=1)
    yield "bad_big_endian", gguf((), version=3, endian=">")
    yield "bad_counts", gguf(model, counts=(1 << 62, 2))
    yield "bad_pairs", gguf(model, counts=(0, 3))
    yield "bad_key_utf8", gguf([pair(b"\xed\xa0\x80", U8, 1)])
    yield "bad_key_twice", gguf(model + model)
    yield "bad_key_length", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1) + bytes(16)
    yield "bad_value_type", gguf([text("k") + struct.pack("<II", 13, 0)])
    yield "bad_bool", gguf([pair("k", BOOL, 2)])
    yield "bad_array_count", gguf([text("k") + struct.pack("<IIQI", ARR, U32, (1 << 62) + 1, 1)])
    yield "bad_array_depth", gguf([text("k") + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 40])
    yield "bad_alignment", gguf([pair("general.alignment", U32, 24)], [("a", 0, [3])])
    yield "bad_alignment_type", gguf([pair("general.alignment", STR, "32")])
    yield "bad_dimensions", gguf((), [("t", 0, [1, 1, 1, 1, 1])])
    yield "bad_dimension_zero", gguf((), [("t", 0, [4, 0])])
    yield "bad_product", gguf((), [("t", 0, [1 << 32, 1 << 32])])
    yield "bad_bytes", gguf((), [("t", 0, [1 << 62])])
    yield "bad_block", gguf((), [("t", 3, [33])])
    yield "bad_offset", gguf((), [("t", 0, [8], 4)])
    yield "bad_offset_wraps", gguf((), [("t", 0, [8], (1 << 64) - 32)])
    yield "bad_overlap", gguf((), [("a", 0, [16]), ("b", 0, [8], 32)])
    yield "bad_twins", gguf((), [("a", 0, [8]), ("a", 0, [8])])
    whole = gguf(model, [("t", 3, [32, 2])])
    yield "bad_cut_data", whole[:-1]
    yield "bad_cut_table", whole[:120]
    yield "bad_cut_header", whole[:20]


def main():
    folder = pathlib.Path(__file__).with_name("corpus") / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files():
        (folder / f"{name}.gguf").write_bytes(data)
    print(f"{folder.name}: {len(list(folder.iterdir()))} files")


if __name__ == "__main__":
    main()
