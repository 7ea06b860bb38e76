#!/usr/bin/env python3
"""Writes the wgmma instructions for each N, as inline assembly needs every register spelled out.

Usage: make_wgmma.py > wgmma_shapes.inc                 m64nNk16, bf16 and f16
       make_wgmma.py e4m3 > wgmma_e4m3_shapes.inc       m64nNk32, e4m3
"""
import sys

SHAPES = [8, 16, 24, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]
E4M3_SHAPES = [8, 16, 32, 48, 56, 64, 128, 192]


def wrap(items, indent, width=118):
    lines, line = [], indent
    for i, item in enumerate(items):
        piece = item + ("," if i + 1 < len(items) else "")
        if len(line) + len(piece) + 1 > width:
            lines.append(line.rstrip())
            line = indent
        line += piece + " "
    lines.append(line.rstrip())
    return "\n".join(lines)


def instruction(n, a_in_registers, kind):
    regs = n // 2
    a = "{%%%d, %%%d, %%%d, %%%d}" % tuple(range(regs, regs + 4)) if a_in_registers else "%%%d" % regs
    b = regs + (4 if a_in_registers else 1)
    flags = "p, 1, 1, %%%d" % (b + 2) if a_in_registers else "p, 1, 1, 0, %%%d" % (b + 2)
    lines, line = [], ""
    for i in range(regs):
        piece = "%%%d" % i + (", " if i + 1 < regs else "")
        if len(line) + len(piece) > 100:
            lines.append('        "%s"' % line)
            line = ""
        line += piece
    lines.append('        "%s"' % line)
    text = '        "{ .reg .pred p; setp.ne.b32 p, %%%d, 0;\\n"\n' % (b + 1)
    text += '        "wgmma.mma_async.sync.aligned.m64n%dk16.f32.%s.%s {"\n' % (n, kind, kind)
    text += "\n".join(lines) + "\n"
    text += '        "}, %s, %%%d, %s; }"\n' % (a, b, flags)
    text += "        :\n" + wrap(['"+f"(d[%d])' % i for i in range(regs)], "        ") + "\n"
    if a_in_registers:
        inputs = ['"r"(a[%d])' % i for i in range(4)] + ['"l"(b)', '"r"(accumulate)', '"n"(kTransposeB)']
    else:
        inputs = ['"l"(a)', '"l"(b)', '"r"(accumulate)', '"n"(kTransposeB)']
    text += "        :\n" + wrap(inputs, "        ")
    return "    asm volatile(\n%s);" % text


def e4m3_instruction(n):
    regs = n // 2
    lines, line = [], ""
    for i in range(regs):
        piece = "%%%d" % i + (", " if i + 1 < regs else "")
        if len(line) + len(piece) > 100:
            lines.append('        "%s"' % line)
            line = ""
        line += piece
    lines.append('        "%s"' % line)
    text = '        "{ .reg .pred p; setp.ne.b32 p, %%%d, 0;\\n"\n' % (regs + 2)
    text += '        "wgmma.mma_async.sync.aligned.m64n%dk32.f32.e4m3.e4m3 {"\n' % n
    text += "\n".join(lines) + "\n"
    text += '        "}, %%%d, %%%d, p, 1, 1; }"\n' % (regs, regs + 1)
    text += "        :\n" + wrap(['"+f"(d[%d])' % i for i in range(regs)], "        ") + "\n"
    text += '        : "l"(a), "l"(b), "r"(kAccumulate)'
    return "    asm volatile(\n%s);" % text


def write_e4m3():
    print("// Written by make_wgmma.py; do not edit.")
    print("// clang-format off")
    for n in E4M3_SHAPES:
        print("template <>\nstruct WgmmaE4M3Shape<%d> {" % n)
        print("  template <int kAccumulate>")
        print("  __device__ static void run(float (&d)[%d], uint64_t a, uint64_t b) {" % (n // 2))
        print(e4m3_instruction(n))
        print("  }\n};")
    print("// clang-format on")


def main():
    if sys.argv[1:] == ["e4m3"]:
        write_e4m3()
        return
    print("// Written by make_wgmma.py; do not edit.")
    print("// clang-format off")
    for n in SHAPES:
        print("template <>\nstruct WgmmaShape<%d> {" % n)
        for a_in_registers, a in ((False, "uint64_t a"), (True, "const uint32_t (&a)[4]")):
            print("  template <numerics::Operand kKind, int kTransposeB>")
            print("  __device__ static void run(float (&d)[%d], %s, uint64_t b, int accumulate) {" % (n // 2, a))
            print("    if constexpr (kKind == numerics::Operand::kBF16) {")
            print(instruction(n, a_in_registers, "bf16"))
            print("    } else {")
            print(instruction(n, a_in_registers, "f16"))
            print("    }\n  }")
        print("};")
    print("// clang-format on")


if __name__ == "__main__":
    main()
