"""Training throughput of the engine against Lightning, plain PyTorch, and the bare floor.

One harness: 8 float columns, 1,000,000 rows for the student, one thread; the contestants take turns
in every round, and a figure is the median over rounds of a ratio within one round. Ours runs with
milestones, validation and checkpoints on; the floor is forward, backward and fused Adam on slices
shuffled beforehand.

    python -m bench.bench_training [--rounds 7]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bench.harness import Clocked, take_turns
from bench.results import Measure, write
from kubestill.runtime.checkpoints import Checkpointer, resolve_place
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.training.batches import ResidentRows
from kubestill.runtime.training.device import arithmetic, choose_machine, numerics_key
from kubestill.runtime.training.engine import Trainer
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.prepare import Prepared
from kubestill.runtime.training.settings import parse_settings
from kubestill.runtime.training.validation import Validation

HELD_OUT = 100
"""One validation row for so many training rows, scored once an epoch."""


@dataclass(frozen=True)
class Case:
    """One network at one batch size, and the bars for it."""

    name: str
    hidden: tuple[int, ...]
    batch: int
    rows: int
    epochs: int
    """How long the engine and the floor train in a round."""
    engine_floor: float
    """Bar for any model: our autograd step against the floor."""
    fused_floor: float | None
    """Bar for plain MLP students: our fused step against the floor."""
    lightning: float | None


STUDENT, TEACHER = (64, 64), (512, 512, 512)
CASES = (
    Case("student 8-64-64-1, batch 1024", STUDENT, 1024, 1_000_000, 2, 0.95, 1.8, 8.0),
    Case("student 8-64-64-1, batch 8192", STUDENT, 8192, 1_000_000, 3, 0.90, 1.15, 8.0),
    Case("teacher 8-512-512-512-1, batch 1024", TEACHER, 1024, 100_000, 1, 0.97, None, None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    generator = torch.Generator().manual_seed(0)
    measures: list[Measure] = []
    for case in CASES:
        features = torch.randn(case.rows, 8, generator=generator)
        target = features.sin().sum(1, keepdim=True)
        with tempfile.TemporaryDirectory() as folder:
            measures += measure(case, features, target, rounds, Path(folder))
    write("training", measures)


def measure(case: Case, features: Tensor, target: Tensor, rounds: int, root: Path) -> list[Measure]:
    """Return the ratios of one case."""
    steps = case.epochs * -(-case.rows // case.batch)
    few = max(10, steps // 10)
    contestants: dict[str, Clocked] = {
        "floor": lambda: time_floor(case, features, target, steps),
        "engine, autograd step": lambda: time_engine(
            case, features, target, steps, "autograd", root
        ),
        "engine, fused step": lambda: time_engine(case, features, target, 2 * steps, "fused", root),
        "plain loop, DataLoader": lambda: time_plain(case, features, target, few),
        "Lightning, DataLoader": lambda: time_lightning(
            case,
            DataLoader(TensorDataset(features, target), case.batch, shuffle=True),
            few,
        ),
        "Lightning, pre-batched": lambda: time_lightning(
            case, DataLoader(Prebatched(features, target, case.batch), batch_size=None), few * 3
        ),
    }
    turns = take_turns(contestants, rounds, warm_up=0)

    def row(ours: str, peer: str, bar: float | None) -> Measure:
        name = f"{case.name}: {ours} over {peer}"
        return Measure(name=name, value=turns.ratio(peer, ours), bar=bar, unit="times", peer=peer)

    automatic = "engine, fused step"
    return [
        row("engine, autograd step", "floor", case.engine_floor),
        row(automatic, "floor", case.fused_floor),
        row("engine, autograd step", "Lightning, DataLoader", case.lightning),
        row(automatic, "Lightning, DataLoader", case.lightning),
        row(automatic, "Lightning, pre-batched", None),
        row(automatic, "plain loop, DataLoader", None),
    ]


def network(case: Case) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [8, *case.hidden]
    layers = [
        layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def slices(features: Tensor, target: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from zip(features.split(batch), target.split(batch), strict=True)


def time_floor(case: Case, features: Tensor, target: Tensor, steps: int) -> float:
    """Return seconds a step of the bare forward, backward and update."""
    model, batches = network(case), slices(features, target, case.batch)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    start = time.perf_counter()
    for x, y in itertools.islice(batches, steps):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def time_plain(case: Case, features: Tensor, target: Tensor, steps: int) -> float:
    """Return seconds a step of the textbook loop over a DataLoader."""
    model = network(case)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loader = iter(DataLoader(TensorDataset(features, target), case.batch, shuffle=True))
    next(loader)  # the permutation is not what is measured
    start = time.perf_counter()
    for x, y in itertools.islice(itertools.cycle(loader), steps):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def time_engine(
    case: Case, features: Tensor, target: Tensor, steps: int, path: str, root: Path
) -> float:
    """Return seconds a step of our engine, with milestones, validation and checkpoints on."""
    held = case.rows // HELD_OUT
    settings = parse_settings(
        {"optimizer": "Adam", "schedule": "constant", "batch_size": case.batch, "steps": steps},
        {"step_path": path, "threads": 1, "milestone_every": 1},
    )
    machine = choose_machine(settings)
    model = Model.create(
        SCHEMA,
        encoder=Encoder.fit([features[:held].numpy()], RawLayout(SCHEMA)),
        decoder=Decoder.fit([target[:held].numpy()]),
        network_args={"hidden": list(case.hidden)},
    )
    prepared = Prepared(
        model=model,
        rows=ResidentRows([features, target]),
        loss=build_loss("mse"),
        loss_name="mse",
        validation=Validation(
            ResidentRows([features[:held], target[:held]]),
            task="regression",
            decoder=model.decoder,
        ),
        metric="rmse",
        shuffle="full",
    )
    place = resolve_place(str(root), "bench", f"{path}-{time.monotonic_ns()}", "")
    with arithmetic(settings):
        numerics = numerics_key(machine, step_path=path, world_size=1, processors=())
        opened = Checkpointer.open(
            place, settings.checkpoints, numerics=numerics, announce=lambda line: None
        )
        with opened as checkpointer:
            trainer = Trainer(prepared, settings, machine, checkpointer, say=lambda line: None)
            start = time.perf_counter()
            trainer.fit()
            return (time.perf_counter() - start) / steps


class Module(lightning.LightningModule):
    """The same network and optimizer as a Lightning module."""

    def __init__(self, case: Case, steps: int):
        super().__init__()
        self.model = network(case)
        self.seen, self.start, self.spent = 0, 0.0, 0.0
        self.last = steps

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.model(x), y)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.seen == 1:
            self.start = time.perf_counter()
        self.seen += 1

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        if self.seen == self.last:
            self.spent = time.perf_counter() - self.start

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), fused=True)


class Prebatched(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches as slices, which spares the DataLoader its collation."""

    def __init__(self, features: Tensor, target: Tensor, batch: int):
        self._data = features, target, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        features, target, batch = self._data
        order = torch.randperm(len(features))
        yield from zip(features[order].split(batch), target[order].split(batch), strict=True)


def time_lightning(case: Case, loader: DataLoader[tuple[Tensor, Tensor]], steps: int) -> float:
    """Return seconds a step of Lightning's Trainer, from its second batch on."""
    steps = max(steps, 10)
    module = Module(case, steps)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return module.spent / (steps - 1)


SCHEMA = Schema(
    columns=(
        *(Column(name=f"x{i}", kind="numeric") for i in range(8)),
        Column(name="y", kind="numeric", role="target"),
    ),
    task="regression",
)


if __name__ == "__main__":
    main()
