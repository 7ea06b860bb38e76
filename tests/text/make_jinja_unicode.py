#!/usr/bin/env python3
"""Writes src/text/jinja_unicode_data.inc: what Python's str methods ask of Unicode, as ranges with a stride.

usage: python3 tests/text/make_jinja_unicode.py > src/text/jinja_unicode_data.inc   (Python 3.11: Unicode 14)
"""
import sys
import unicodedata

SURROGATES = range(0xD800, 0xE000)
POINTS = [c for c in range(0x110000) if c not in SURROGATES]


def ranges(points):
    """Maximal runs (first, last, stride) with stride 1 or 2."""
    out = []
    for c in points:
        if out:
            first, last, stride = out[-1]
            if stride == 0 and c - last <= 2:
                out[-1] = (first, c, c - last)
                continue
            if stride and c - last == stride:
                out[-1] = (first, c, stride)
                continue
        out.append((c, c, 0))
    return [(f, l, s or 1) for f, l, s in out]


def mapping(convert):
    """Runs (first, last, stride, delta) of the one-to-one mappings, and the list of the others."""
    by_delta, special = {}, []
    for c in POINTS:
        to = convert(chr(c))
        if to == chr(c):
            continue
        if len(to) > 1:
            special.append((c, to))
        else:
            by_delta.setdefault(ord(to) - c, []).append(c)
    runs = [(f, l, s, d) for d, points in by_delta.items() for f, l, s in ranges(points)]
    return sorted(runs), special


def emit(kind, name, rows):
    print(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        cell = " {" + ", ".join(str(x) for x in row) + "},"
        if len(line) + len(cell) > 118:
            print(line)
            line = "   "
        line += cell
    print(line)
    print("};")


def main():
    print("// Written by tests/text/make_jinja_unicode.py from Unicode "
          f"{unicodedata.unidata_version}; do not edit.")
    print("// clang-format off")
    props = {
        "kAlpha": str.isalpha,
        "kDecimal": str.isdecimal,
        "kDigitOnly": lambda s: s.isdigit() and not s.isdecimal(),
        "kNumericOnly": lambda s: s.isnumeric() and not s.isdigit(),
        "kLower": str.islower,
        "kUpper": str.isupper,
        "kNotPrintable": lambda s: not s.isprintable(),
    }
    for name, test in props.items():
        emit("CodeRange", name, ranges([c for c in POINTS if c >= 0x80 and test(chr(c))]))
    special_rows = []
    for name, convert, tag in (("kToUpper", str.upper, 0), ("kToLower", str.lower, 1), ("kToTitle", str.title, 2)):
        runs, special = mapping(convert)
        if tag == 2:  # only where the title form is not the upper form
            upper_runs, upper_special = mapping(str.upper)
            differs = [c for c in POINTS if len(chr(c).title()) == 1 and chr(c).title() != chr(c).upper()]
            runs = sorted((c, c, 1, ord(chr(c).title()) - c) for c in differs)
        emit("Shift", name, runs)
        for c, to in special:
            code = [ord(x) for x in to] + [0] * (3 - len(to))
            special_rows.append((tag, c, *code))
    emit("Special", "kSpecial", special_rows)
    print("// clang-format on")


if __name__ == "__main__":
    sys.exit(main())
