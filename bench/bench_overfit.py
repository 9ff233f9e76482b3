"""Does overfit-batch refuse sound set-ups? A zoo of healthy ones, and the same rows shuffled.

python -m bench.bench_overfit [--set-ups 200] [--first 0] [--minutes 15] [--shuffled 60]

Every set-up is drawn by its number, so that any of them can be looked at again with `--first N
--set-ups 1`. Time is that of the processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.results import Measure, write
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.sanity import Findings, GateSettings, Rows, examine
from kubestill.runtime.training.device import arithmetic, choose_machine
from kubestill.runtime.training.prepare import prepare, resolve_loss
from kubestill.runtime.training.settings import TrainingSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit" / "sanity"))
import gated_rows  # noqa: E402  # pyright: ignore[reportMissingImports]
from healthy_zoo import SetUp, set_up  # noqa: E402  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Examine one set-up after the other while there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set-ups", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--shuffled", type=int, default=60)
    told = parser.parse_args()
    begun, done, refused, spent = time.process_time(), 0, 0, 0.0
    gate = GateSettings()
    for number in range(told.first, told.first + told.set_ups):
        if time.process_time() - begun > 60 * told.minutes:
            break
        before = time.process_time()
        drawn = set_up(number)
        found = examined(drawn, gate)
        spent = max(spent, time.process_time() - before)
        done += 1
        refused += found.verdict != "pass"
        mark = " " if found.verdict == "pass" else "*"
        print(f"{mark} {time.process_time() - before:5.1f} s  {drawn}", flush=True)
        for check in found.checks:
            if check.status != "ok":
                print(f"      {check.status} {check.code}: {check.said}")
    write(
        "overfit",
        [
            Measure(
                name="healthy set-ups refused",
                value=refused / max(1, done),
                bar=0.01,
                at_least=False,
                unit="share",
                peer=f"{done} set-ups of the zoo",
            ),
            Measure(
                name="longest check",
                value=spent,
                bar=1.1 * gate.seconds,
                at_least=False,
                unit="s",
                peer=f"gate.seconds = {gate.seconds:g}",
            ),
        ],
    )


def examined(drawn: SetUp, gate: GateSettings, *, shuffle: bool = False) -> Findings:
    """Run the gate as a training run's step does."""
    with TemporaryDirectory() as folder:
        dataset = gated_rows.write(drawn.table(), folder, lambda frame: frame)
        settings = TrainingSettings(
            threads=1,
            network=drawn.network,
            network_args=drawn.network_args,
            **drawn.settings,
        )
        machine = choose_machine(settings)
        loss = resolve_loss(settings, dataset, distil=False)
        with arithmetic(settings):
            prepared = prepare(dataset, None, settings, machine, loss_name=loss)
            decoded = load_decoded(dataset, RawLayout(dataset.schema))
            labels = decoded.target
            if shuffle and labels is not None:
                labels = np.random.default_rng(drawn.number).permutation(labels)
            rows = Rows(labels=labels, soft=decoded.soft, complete=False)
            return examine(prepared, rows, settings, machine, gate)


if __name__ == "__main__":
    main()
