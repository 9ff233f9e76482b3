"""Write bench/README.md from the results: one table a bench, with date and machine kind."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# Benches

`make bench` runs what needs no special data and rewrites this page from `bench/results/*.json`.
Every figure is measured against a named peer in the same run, rivals taking turns; ratios carry
over to other machines, absolute numbers do not. A bar that is missed says so.

| command | what it measures |
| --- | --- |
| `python -m bench.bench_data` | reading, the decoded cache, memory |
| `python -m bench.bench_labelling` | labelling against a bare inference loop |
| `python -m bench.bench_training` | training against Lightning, plain PyTorch and the bare floor |
| `python -m bench.bench_digits` | what soft targets are worth on real digits: 20 paired seeds |
| `python -m bench.bench_surrogates` | Heston and Burgers against published surrogates and pricers |
| `python -m bench.bench_table` | a Q-table as a network, beside xz, a tree and interpolation |
| `python -m bench.bench_stall` | how long a save stops the training, and restoring |
| `python -m bench.bench_stall --end-to-end` | what saving costs a large training in all |
| `python -m bench.bench_transfer` | uploads and downloads against the emulator |
| `python -m bench.bench_gate` | continuous-eval: false alarms, power, bad months named |
| `make bench-retraining SEEDS=5` | a real year through the real pipeline; one seed unless told |
| `make bench-mnist DATA=…` | Hinton et al. 2015 on MNIST (IDX files); `SCALE=small` for 2 cores |
| `make bench-chaos` | 200 kills of real training processes, in each kind of store |
"""


def main() -> None:
    """Rewrite the page."""
    parts = [HEAD]
    for path in sorted((HERE / "results").glob("*.json")):
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
        if path.with_suffix(".svg").exists():
            parts.append(f"\n![{path.stem}](results/{path.stem}.svg)")
    (HERE / "README.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
