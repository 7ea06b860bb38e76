#!/usr/bin/env python3
"""Draws what `isobit bench serve --json` wrote, with matplotlib or, failing that, gnuplot: output over time and both latencies.

usage: plot_serve.py FIGURES.json PLOT.png
"""
import json
import shutil
import subprocess
import sys


def series(figures):
    """Requests as (sent, first token, last token, tokens); output tok/s in twenty slices, each answer's tokens spread evenly."""
    requests = [(sent, first, last, out) for sent, first, last, _, out in figures["each_sent_first_last_in_out"]]
    slices, width = [0.0] * 20, max(figures["seconds"], 1e-9) / 20
    for _, first, last, out in requests:
        for i in range(20):
            overlap = min(last, (i + 1) * width) - max(first, i * width)
            if overlap > 0:
                slices[i] += out * overlap / max(last - first, 1e-9) / width
    rate = [((i + 0.5) * width, v) for i, v in enumerate(slices)]
    first = [(sent, 1e3 * (first - sent)) for sent, first, _, _ in requests]
    token = [(sent, 1e3 * (last - first) / (out - 1)) for sent, first, last, out in requests if out > 1]
    return (("output, tok/s", rate, True), ("time to first token, ms", first, False), ("time per output token, ms", token, False))


def with_matplotlib(title, panels, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(3, 1, figsize=(9, 9), constrained_layout=True)
    figure.suptitle(title)
    for axis, (name, points, line) in zip(axes, panels):
        axis.plot(*zip(*points) if points else ([], []), "-" if line else ".")
        axis.set(ylabel=name, xlabel="s", ylim=(0, None))
    figure.savefig(path, dpi=120)


def with_gnuplot(title, panels, path):
    script = [f"set terminal pngcairo size 1000,1000; set output {json.dumps(path)}; set multiplot layout 3,1 title {json.dumps(title)}"]
    for name, points, line in panels:
        script.append(f"set ylabel {json.dumps(name)}; set xlabel 's'; set yrange [0:*]")
        script.append(f"plot '-' with {'lines' if line else 'points pt 7 ps 0.6'} notitle")
        script += [f"{x} {y}" for x, y in points] + ["e"]
    subprocess.run(["gnuplot"], input="\n".join(script), text=True, check=True)


def main():
    figures = json.load(open(sys.argv[1]))
    title = f"{figures['completed']} requests, {figures['output_tok_s']:.0f} output tok/s"
    try:
        with_matplotlib(title, series(figures), sys.argv[2])
    except ImportError:
        if not shutil.which("gnuplot"):
            print("no plot: neither matplotlib nor gnuplot is installed")
            return
        with_gnuplot(title, series(figures), sys.argv[2])
    print(f"drawn: {sys.argv[2]}")


if __name__ == "__main__":
    main()
