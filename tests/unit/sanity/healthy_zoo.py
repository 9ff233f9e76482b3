"""Healthy set-ups, drawn at random from all that people train: the gate must refuse none of them.

1 to 2,000 features, 300 to 4,000 rows, noise from none to nine tenths of the label's variance,
regression and 2 to 50 classes, every built-in network at widths from 8 to 1,024. What is to be
learned is a function of the features, so that the label is theirs by construction.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from gated_rows import Table, write
from numpy.typing import NDArray

from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.sanity import Check, GateData, GateFindings, GateSettings, HeldOut, examine
from kubestill.runtime.sanity.heldout import check_held_out
from kubestill.runtime.training.device import arithmetic, choose_machine
from kubestill.runtime.training.prepare import prepare, resolve_loss
from kubestill.runtime.training.settings import TrainingSettings

WIDTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
FEATURES = (1, 1, 2, 3, 5, 10, 30, 100, 300, 1000, 2000)
ROWS = (300, 700, 1500, 4000)
CLASSES = (0, 0, 0, 2, 2, 3, 5, 10, 20, 50)
"""0 is a regression."""
EXPLAINED = (1.0, 1.0, 0.95, 0.8, 0.5, 0.3, 0.1)
"""Share of the label's variance that the features explain."""
FUNCTIONS = ("linear", "three of them", "sine", "square", "steps", "network", "product")
NETWORKS = ("mlp", "mlp", "mlp", "resmlp", "siren", "fourier", "fno")
POINTS = 32


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """One healthy training run."""

    number: int
    network: str
    width: int
    features: int
    rows: int
    classes: int
    explained: float
    function: str
    network_args: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        task = f"{self.classes} classes" if self.classes else "regression"
        shape = f"{self.rows}x{self.features}"
        told = f"{self.function}, {self.explained:.0%} explained"
        return f"{self.number}: {self.network} {self.network_args}, {shape}, {task}, {told}"

    def table(self) -> Table:
        """Return its rows."""
        random = np.random.default_rng([1, self.number])
        if self.network == "fno":
            return _fields(self, random)
        inputs, label = draw_rows(self, random)
        names = [f"x{place}" for place in range(self.features)]
        frame = pd.DataFrame(inputs, columns=names)
        columns = [Column(name=name, kind="numeric") for name in names]
        if not self.classes:
            target = Column(name="y", kind="numeric", role="target")
            frame["y"] = label[:, 0]
            return Schema(columns=(*columns, target), task="regression"), frame
        labels = tuple(f"c{number:02d}" for number in range(self.classes))
        frame["y"] = np.asarray(labels)[label]
        target = Column(name="y", kind="categorical", role="target", categories=labels)
        task = "binary" if self.classes == 2 else "multiclass"
        return Schema(columns=(*columns, target), task=task), frame


def set_up(number: int) -> SetUp:
    """Draw one by its number."""
    random = np.random.default_rng([0, number])

    def one_of(values: Any) -> Any:
        return values[random.integers(len(values))]

    network, width, depth = one_of(NETWORKS), one_of(WIDTHS), int(random.integers(1, 4))
    arguments: dict[str, Any] = {"hidden": [width] * depth}
    settings: dict[str, Any] = {}
    if network == "mlp":
        arguments["activation"] = one_of(("relu", "relu", "tanh", "silu", "gelu", "elu"))
        arguments["norm"] = one_of(("none", "none", "none", "batch", "layer"))
        arguments["dropout"] = one_of((0.0, 0.0, 0.3))
        arguments["residual"] = depth > 1 and bool(random.integers(2))
    elif network == "resmlp":
        arguments = {"width": width, "blocks": depth}
    elif network == "fno":
        width = min(width, 64)
        arguments = {"channels": width, "modes": 8, "layers": depth}
        settings["target_scale"] = "together"
    features = one_of(FEATURES)
    functions = FUNCTIONS if 2 <= features <= 3 else FUNCTIONS[:-1]
    return SetUp(
        number=number,
        network=network,
        width=width,
        features=POINTS if network == "fno" else features,
        rows=one_of(ROWS),
        classes=0 if network == "fno" else one_of(CLASSES),
        explained=one_of(EXPLAINED),
        function="smoothing" if network == "fno" else one_of(functions),
        network_args=arguments,
        settings=settings,
    )


def draw_rows(set_up: SetUp, random: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return features [n, F], and values [n, 1] or classes [n]."""
    inputs = random.normal(size=(set_up.rows, set_up.features))
    wanted = set_up.classes if set_up.classes > 2 else 1
    scores = np.stack([_function(set_up.function, inputs, random) for _ in range(wanted)], 1)
    scores = (scores - scores.mean(0)) / scores.std(0)
    noise = random.normal(size=scores.shape)
    told = np.sqrt(set_up.explained) * scores + np.sqrt(1 - set_up.explained) * noise
    if not set_up.classes:
        return inputs, told
    return inputs, told.argmax(1) if wanted > 1 else (told[:, 0] > 0).astype(np.int64)


def _function(name: str, inputs: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Return one random function of rows [n, F]: values [n]."""
    few = inputs[:, random.permutation(inputs.shape[1])[:3]]
    phase = random.uniform(0, 2 * np.pi)
    match name:
        case "linear":
            return inputs @ random.normal(size=inputs.shape[1]) + phase
        case "three of them":
            return few @ random.normal(size=few.shape[1]) + phase
        case "sine":
            return np.sin(2 * few[:, 0] + phase)
        case "square":
            return (few[:, 0] - random.normal()) ** 2
        case "steps":
            return (few > random.normal(size=few.shape[1]) / 2) @ random.normal(size=few.shape[1])
        case "product":
            return few[:, 0] * few[:, 1] + random.normal() * few[:, 0]
        case _:
            weights = random.normal(size=(inputs.shape[1], 32)) / inputs.shape[1] ** 0.5
            return np.maximum(inputs @ weights, 0) @ random.normal(size=32) + phase


def _fields(set_up: SetUp, random: np.random.Generator) -> Table:
    """Return rough fields and what is left of them when they are smoothed, with noise."""
    rough = random.normal(size=(set_up.rows, POINTS)).cumsum(1)
    rough -= rough.mean(1, keepdims=True)
    damped = np.exp(-0.5 * np.arange(POINTS // 2 + 1))
    smooth = np.fft.irfft(np.fft.rfft(rough) * damped, POINTS)
    noise = random.normal(size=smooth.shape) * smooth.std()
    told = np.sqrt(set_up.explained) * smooth + np.sqrt(1 - set_up.explained) * noise
    columns = (
        Column(name="rough", kind="tensor", shape=(POINTS,)),
        Column(name="smooth", kind="tensor", role="target", shape=(POINTS,)),
    )
    frame = pd.DataFrame({"rough": list(rough.astype(np.float32))})
    frame["smooth"] = list(told.astype(np.float32))
    return Schema(columns=columns, task="regression"), frame


def examined(drawn: SetUp, gate: GateSettings) -> GateFindings:
    """Run the gate on a set-up as a training run's step does."""
    with TemporaryDirectory() as folder:
        dataset = write(drawn.table(), folder, lambda frame: frame)
        settings = TrainingSettings(
            threads=1, network=drawn.network, network_args=drawn.network_args, **drawn.settings
        )
        machine = choose_machine(settings)
        loss = resolve_loss(settings, dataset, distil=False)
        with arithmetic(settings):
            prepared = prepare(dataset, None, settings, machine, loss_name=loss)
            decoded = load_decoded(dataset, RawLayout(dataset.schema))
            rows = GateData(labels=decoded.target, soft=decoded.soft, complete=False)
            return examine(prepared, rows, settings, machine, gate)


def asked(inputs: NDArray[Any], labels: NDArray[Any]) -> tuple[Check, HeldOut | None]:
    """Ask whether the labels of held-out rows can be told."""
    return check_held_out(
        inputs.astype(np.float32),
        labels,
        np.arange(len(inputs)),
        codes=0,
        complete=False,
        seed=0,
        deadline=time.thread_time() + 60,
    )


def asked_of_shuffled(drawn: SetUp) -> tuple[Check, HeldOut | None]:
    """Ask the same of a set-up's rows under each other's labels."""
    random = np.random.default_rng([2, drawn.number])
    inputs, labels = draw_rows(replace(drawn, function="linear"), random)
    return asked(inputs, random.permutation(labels))
