"""The GPU record, bench/results/h200.json: what an H200 gave for one state of the CUDA sources."""
import hashlib
import json
import os
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORD = ROOT / "bench/results/h200.json"
SOURCES = ("src/ops/cuda", "src/numerics")
END = "<!-- end record -->"
MARK = re.compile(r"<!-- record: (.+?) -->(.*?)" + re.escape(END), re.S)


def sources_hash(root=ROOT):
    """SHA-256 over paths and contents of the files that decide the GPU's bits and times."""
    files = sorted(p for folder in SOURCES for p in (root / folder).rglob("*") if p.is_file() and p.suffix != ".pyc")
    total = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        total.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def load(path):
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def save(path, record):
    """Sorted, one test or row a line, so that two records can be compared by diff; never left half-written."""
    def lines(items):
        return ",\n".join("  " + json.dumps(item) for item in items)

    record["tests"].sort(key=lambda t: t["name"])
    record["rows"].sort(key=lambda r: (r["op"], r["case"]))
    head = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in record.items() if k not in ("tests", "rows"))
    text = f'{{\n{head},\n "tests": [\n{lines(record["tests"])}\n ],\n "rows": [\n{lines(record["rows"])}\n ]\n}}\n'
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def merge(old, new):
    """`new` over `old` where both are of the same sources and device, else `new` alone."""
    if not old or any(old.get(key) != new.get(key) for key in ("sources", "device")):
        return new
    tests = {t["name"]: t for t in old["tests"]} | {t["name"]: t for t in new["tests"]}
    rows = {(r["op"], r["case"]): dict(r) for r in old["rows"]}
    for row in new["rows"]:
        known = rows.setdefault((row["op"], row["case"]), {"op": row["op"], "case": row["case"]})
        peers = known.get("peers", {}) | row.get("peers", {})
        known.update(row)
        if peers:
            known["peers"] = peers
    return old | new | {"tests": list(tests.values()), "rows": list(rows.values())}


def table(record, op):
    rows = [r for r in record["rows"] if r["op"] == op and "us" in r]
    names = sorted({name for r in rows for name in r.get("peers", {})})
    cells = [["case", "µs", "floor"] + names]
    for r in rows:
        peers = [f"{r['peers'][n]:.1f}" if n in r.get("peers", {}) else "–" for n in names]
        cells.append([r["case"], f"{r['us']:.1f}", f"{r['floor_us']:.1f}" if r.get("floor_us") else "–"] + peers)
    cells.insert(1, ["---"] + ["---:"] * (len(cells[0]) - 1))
    return "\n" + "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def cpu_table(path):
    """What `isobit bench cpu --json` printed."""
    if not path.exists():
        return "\nNot measured yet.\n"
    r = json.loads(path.read_text())
    lines = ["| | isobit | llama.cpp | ratio |", "| --- | ---: | ---: | ---: |",
             f"| prefill of {r['prefill_tokens']} tokens, tok/s | {r['prefill_tok_s']:.0f} | {r['peer_prefill_tok_s']:.0f} "
             f"| {r['prefill_ratio']:.2f} |"]
    for d in r["decode"]:
        lines.append(f"| decode at context {d['context']}, tok/s | {d['tok_s']:.0f} | {d['peer_tok_s']:.0f} | {d['ratio']:.2f} |")
    lines.append(f"| peak resident memory, MiB | {r['rss_kib'] / 1024:.0f} | {r['peer_rss_kib'] / 1024:.0f} | {r['rss_ratio']:.2f} |")
    lines.append(f"| model ready after, s | {r['load_s']:.2f} | | |")
    return "\n" + "\n".join(lines) + f"\n\n{r['device']}; {r['peer']}; medians of {r['repetitions']} turns.\n"


def figure(record, what):
    """The text of a marker: `table OP`, `value OP CASE FIELD` (us, floor_us or a peer's name), `tests`, `device`, `cpu`
    (bench/results/cpu.json), `cpu MODEL` (cpu_MODEL.json)."""
    words = what.split()
    if words[0] == "cpu" and len(words) <= 2:
        return cpu_table(ROOT / "bench/results" / ("_".join(words) + ".json"))
    if words[0] == "table" and len(words) == 2:
        return table(record, words[1])
    if words[0] == "value" and len(words) == 4:
        for r in record["rows"]:
            if (r["op"], r["case"]) == (words[1], words[2]):
                value = r.get(words[3], r.get("peers", {}).get(words[3]))
                return "–" if value is None else f"{value:.1f}"
        return "–"
    if what == "tests":
        passed = sum(t["outcome"] == "passed" for t in record["tests"])
        return f"{passed} of {len(record['tests'])} tests passed, {sum(t['cases'] for t in record['tests'])} cases"
    if what == "device":
        return f"{record['device']}, driver {record['driver']}, CUDA {record['cuda']}, {record['date']}"
    raise ValueError(f"unknown marker: record: {what}")


def documents(root=ROOT):
    return [p for p in [root / "README.md", *sorted((root / "docs").rglob("*.md"))] if p.is_file()]


def regenerate(text, record):
    return MARK.sub(lambda m: f"<!-- record: {m[1]} -->{figure(record, m[1])}{END}", text)
