"""How long training stands still for a save, and what saving costs it in all.

The state is a model of so many million float32 parameters with Adam's two moments. The blocking
time of a save is held against a bare copy into buffers that are there already and against other
tools (see `savers`), each with its writer idle at the start; restoring reads and verifies the
newest checkpoint from a warm local file. A small network whose state is 12 MB is saved every 20
steps of a real training. `--end-to-end` measures a large training instead (see `end_to_end`).

    python -m bench.bench_stall [--millions 10 100] [--rounds 5]
    python -m bench.bench_stall --end-to-end [--millions 100] [--windows 2] [--seconds 30]
"""

from __future__ import annotations

import argparse
import tempfile
import warnings

import torch
from torch import Tensor, nn

from bench import end_to_end, savers
from bench.harness import Turns, clock, slow_down, take_turns
from bench.results import Measure, write
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.state import TrainingState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where checkpoints go; default: the temporary folder")
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--windows", type=int, default=2, help="pairs of windows, end to end")
    parser.add_argument("--seconds", type=float, default=30.0, help="between saves, end to end")
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    if told.end_to_end:
        millions = max(told.millions)
        found = end_to_end.measure(millions, told.windows, told.seconds, told.folder)
        write("end-to-end", found)
        return
    warnings.filterwarnings("ignore", module="torch.distributed")
    measures: list[Measure] = []
    for millions in told.millions:
        with tempfile.TemporaryDirectory(dir=told.folder) as folder:
            measures += stall(millions, told.rounds, folder)
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        measures += small(folder, 2 * told.rounds)
    write("stall", measures)


def stall(millions: int, rounds: int, folder: str) -> list[Measure]:
    """Return what a save blocks and what a restore takes, at one size."""
    model, optimizer = savers.build(millions, 1000)
    live = savers.state_of(model, optimizer)
    with savers.open_checkpointer(f"{folder}/kubestill") as checkpointer:
        own = {
            "bare copy": savers.bare_copy(live),
            "kubestill": savers.ours(checkpointer, live),
        }
        peers = savers.peers(model, optimizer, live, folder)
        saves = take_turns({**own, **peers}, rounds)
        behind = checkpointer.report().seconds_behind
    size = f"{millions}M parameters"
    blocked = f"{size}: blocking of a save"

    def ratio(peer: str, bar: float) -> Measure:
        name, value = f"{blocked} over {peer}", saves.ratio("kubestill", peer)
        return Measure(name=name, value=value, bar=bar, at_least=False, unit="times", peer=peer)

    return [
        ratio("bare copy", 1.25),
        *(ratio(peer, 1.0) for peer in peers),
        Measure(name=blocked, value=saves.median("kubestill"), unit="s", peer=""),
        Measure(name=f"{size}: writing behind it", value=behind, unit="s", peer=""),
        *restoring(size, restore(f"{folder}/kubestill", live, rounds)),
    ]


def restore(root: str, live: dict[str, Tensor], rounds: int) -> Turns:
    """Time reading the newest checkpoint, verified, against copies of the same state."""
    with savers.open_checkpointer(root) as checkpointer:
        state = checkpointer.restore()
        assert state is not None
        assert all(torch.equal(state.tensors[name], live[name]) for name in live)
        rivals = {
            "restore": clock(checkpointer.restore),
            "new copy": clock(lambda: [tensor.clone() for tensor in live.values()]),
            "bare copy": savers.bare_copy(live),
        }
        return take_turns(rivals, rounds)


def restoring(size: str, turns: Turns) -> list[Measure]:
    name = f"{size}: restoring from a warm file over a"

    def ratio(copy: str, peer: str, bar: float | None = None) -> Measure:
        value = turns.ratio("restore", copy)
        return Measure(
            name=f"{name} {copy}", value=value, bar=bar, at_least=False, unit="times", peer=peer
        )

    return [
        ratio("new copy", "copy into new memory", 1.5),
        ratio("bare copy", "copy into memory that is there"),
    ]


def small(folder: str, rounds: int) -> list[Measure]:
    """Return what saving 12 MB every 20 steps costs a real training."""
    model = nn.Sequential(nn.Linear(500, 1000), nn.ReLU(), nn.Linear(1000, 500))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    rows, steps, done = torch.randn(256, 500), 100, 0

    def window(checkpointer: Checkpointer | None = None) -> None:
        nonlocal done
        for _ in range(steps):
            done += 1
            savers.train_step(model, optimizer, rows)
            if checkpointer and done % 20 == 10:
                view = TrainingState(savers.state_of(model, optimizer), {"step": done})
                checkpointer.save(view, kind="milestone", step=done, epoch=0, examples=done)

    with savers.open_checkpointer(folder) as checkpointer:

        def saving() -> float:
            seconds = clock(lambda: window(checkpointer))()
            checkpointer.flush()  # the next window is not to pay for it
            return seconds

        turns = take_turns({"without": clock(window), "with": saving}, rounds)
    return slow_down("12 MB state every 20 steps", turns, bar=5, peer="same training, no saves")


if __name__ == "__main__":
    main()
