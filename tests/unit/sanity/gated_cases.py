"""Seeded bugs and healthy set-ups, written before the gate that has to tell them apart.

Bugs get in where they do in life: through the rows, the settings, the user's own network, and, for
the parts that are ours, through what `prepare` gives (a developer's mistake).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gated_rows as rows
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from gated_rows import Table
from torch import Tensor

from kubestill.runtime.training.batches import ResidentRows
from kubestill.runtime.training.losses import Targets
from kubestill.runtime.training.prepare import Prepared


def same(anything: Any) -> Any:
    return anything


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    table: Callable[[], Table]
    diagnosis: tuple[str, ...] = ()
    """What may be found; nothing may, in a healthy set-up."""
    verdict: str = "fail"
    network: str = "mlp"
    network_args: Mapping[str, Any] = field(default_factory=lambda: {"hidden": [64, 64]})
    distil: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    gate: Mapping[str, Any] = field(default_factory=dict[str, Any])
    change: Callable[[pd.DataFrame], pd.DataFrame] = same
    """To the rows."""
    tamper: Callable[[Prepared], Prepared] = same
    """With what the training is about to use."""


def broken(name: str) -> dict[str, Any]:
    return {"network": f"gated_networks:{name}", "network_args": {}}


class LikelihoodWithoutLog:
    """`nll_loss` of probabilities instead of log-probabilities: learns, but not what was meant."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        chances = outputs.softmax(1)
        hit = chances.gather(1, targets[0][:, None])
        gradient = chances * hit
        gradient.scatter_add_(1, targets[0][:, None], -hit)
        return F.nll_loss(chances, targets[0]), gradient / len(outputs)


@dataclass
class Summed:
    """A sum over the rows where a mean was meant: the learning rate grows with the batch."""

    loss: Any

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        value, gradient = self.loss(outputs, targets)
        return value * len(outputs), gradient * len(outputs)


@dataclass
class WrongWay:
    """A gradient that goes uphill."""

    loss: Any

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        value, gradient = self.loss(outputs, targets)
        return value, -gradient


def with_features(change: Callable[[Tensor], Tensor]) -> Callable[[Prepared], Prepared]:
    def tamper(prepared: Prepared) -> Prepared:
        assert isinstance(prepared.rows, ResidentRows)
        features, *targets = prepared.rows.tensors
        return replace(prepared, rows=ResidentRows([change(features), *targets]))

    return tamper


def unnormalised(features: Tensor) -> Tensor:
    """Raw columns: an area in square millimetres, a build year, and the rest."""
    return features * torch.tensor([3e7, 30.0, *[1.0] * (features.shape[1] - 2)]) + torch.tensor(
        [9e7, 1975.0, *[0.0] * (features.shape[1] - 2)]
    )


def unscaled_targets(prepared: Prepared) -> Prepared:
    assert isinstance(prepared.rows, ResidentRows)
    features, target = prepared.rows.tensors
    cents = (target * prepared.model.decoder.std + prepared.model.decoder.mean) * 1e5
    return replace(prepared, rows=ResidentRows([features, cents]))


def shifted(frame: pd.DataFrame) -> pd.DataFrame:
    frame[frame.columns[-1]] = np.roll(frame[frame.columns[-1]].to_numpy(), 1)
    return frame


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    labels = frame[frame.columns[-1]].to_numpy()
    frame[frame.columns[-1]] = np.random.default_rng(9).permutation(labels)
    return frame


def one_value(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(day=1.0, line=2.0, load=0.0)


def one_label(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(digit="3")


def sentinels(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[::300, "price"] = -1e12
    return frame


BUGS = [
    Case(
        name="wrong loss: likelihood without its logarithm",
        table=rows.digits,
        tamper=lambda prepared: replace(prepared, loss=LikelihoodWithoutLog()),
        diagnosis=("loss",),
    ),
    Case(
        name="frozen layer, wide enough to memorise around",
        table=rows.digits,
        **broken("FrozenLayer"),
        diagnosis=("frozen",),
    ),
    Case(
        name="labels shifted by one row",
        table=rows.digits,
        change=shifted,
        diagnosis=("misaligned",),
    ),
    Case(
        name="nothing to learn: labels shuffled",
        table=rows.digits,
        change=shuffled,
        verdict="undetermined",
        diagnosis=("undetermined",),
    ),
    Case(
        name="missing normalisation",
        table=rows.prices,
        tamper=with_features(unnormalised),
        diagnosis=("features-scale",),
    ),
    Case(
        name="wrong target scale: cents, not standardised",
        table=rows.prices,
        tamper=unscaled_targets,
        diagnosis=("target-scale",),
    ),
    Case(
        name="softmax twice",
        table=rows.digits,
        **broken("SoftmaxTwice"),
        diagnosis=("softmax",),
    ),
    Case(
        name="softmax twice, behind the embedding of a large category",
        table=rows.bands,
        **broken("SoftmaxTwice"),
        diagnosis=("softmax",),
    ),
    Case(
        name="detached graph",
        table=rows.digits,
        **broken("Detached"),
        diagnosis=("detached",),
    ),
    Case(name="all weights zero", table=rows.digits, **broken("ZeroInit"), diagnosis=("dead",)),
    Case(
        name="wrong reduction: a sum over the batch",
        table=rows.prices,
        tamper=lambda prepared: replace(prepared, loss=Summed(prepared.loss)),
        diagnosis=("reduction",),
    ),
    Case(
        name="constant features: a join that found nothing",
        table=rows.late,
        change=one_value,
        diagnosis=("features-constant",),
    ),
    Case(
        name="one label only", table=rows.digits, change=one_label, diagnosis=("labels-constant",)
    ),
    Case(
        name="learning rate far too high",
        table=rows.digits,
        settings={"learning_rate": 30.0},
        diagnosis=("learning-rate", "exploding"),
    ),
    Case(
        name="learning rate far too low",
        table=rows.field,
        settings={"learning_rate": 1e-8},
        diagnosis=("learning-rate",),
    ),
    Case(
        name="model too small",
        table=rows.digits,
        network_args={"hidden": [1]},
        diagnosis=("too-small",),
    ),
    Case(
        name="gradients explode through depth",
        table=rows.prices,
        **broken("Exploding"),
        diagnosis=("exploding",),
    ),
    Case(
        name="dead units: biases far below zero",
        table=rows.digits,
        **broken("DeadUnits"),
        diagnosis=("dead",),
    ),
    Case(
        name="rows of a batch mixed",
        table=rows.digits,
        **broken("RowsMixed"),
        diagnosis=("rows-mixed",),
    ),
    Case(
        name="gradient uphill",
        table=rows.late,
        tamper=lambda prepared: replace(prepared, loss=WrongWay(prepared.loss)),
        diagnosis=("loss",),
    ),
    Case(
        name="a sentinel among the targets",
        table=rows.prices,
        change=sentinels,
        diagnosis=("target-scale",),
    ),
]

HEALTHY = [
    Case(name="digits, plain MLP", table=rows.digits),
    Case(
        name="digits, dropout, batch norm and weight decay",
        table=rows.digits,
        network_args={"hidden": [96, 96], "dropout": 0.5, "norm": "batch"},
        settings={"optimizer_args": {"weight_decay": 0.1}},
    ),
    Case(
        name="digits, convolutions with batch norm",
        table=rows.digits,
        network="gated_networks:TinyConv",
        network_args={},
    ),
    Case(
        name="digits, a recurrent network",
        table=rows.digits,
        network="gated_networks:Recurrent",
        network_args={},
        settings={"learning_rate": 3e-3},
    ),
    Case(
        name="digits, soft labels at T = 4 with a tenth of the hard ones",
        table=rows.taught,
        distil=True,
        settings={"temperature": 4.0, "hard_weight": 0.1},
    ),
    Case(name="prices: gaps, flags, embedded cities, noise", table=rows.prices),
    Case(name="three bands of price, embedded cities", table=rows.bands),
    Case(name="rare class, weak signal, conflicting duplicates", table=rows.late),
    Case(
        name="a field of sixteen outputs, sine layers",
        table=rows.field,
        network="gated_networks:Sine",
        network_args={},
    ),
    Case(
        name="a smooth function on a sorted grid, tanh",
        table=rows.grid,
        network_args={"hidden": [64, 64], "activation": "tanh"},
        settings={"learning_rate": 3e-3},
    ),
    Case(
        name="a long-tailed target, absolute error",
        table=rows.incomes,
        settings={"loss": "l1", "learning_rate": 3e-3},
    ),
    Case(
        name="SGD with momentum and warm-up",
        table=rows.digits,
        settings={
            "optimizer": "SGD",
            "optimizer_args": {"momentum": 0.9},
            "learning_rate": 0.05,
            "warmup_steps": 50,
        },
    ),
    Case(
        name="a head that starts at zero on purpose",
        table=rows.digits,
        network="gated_networks:ZeroHead",
        network_args={},
    ),
    Case(
        name="a frozen backbone, declared",
        table=rows.digits,
        network="gated_networks:FrozenBackbone",
        network_args={},
        gate={"untrained": ["first.*", "second.*"]},
    ),
    Case(
        name="forty rows in all",
        table=rows.incomes,
        change=lambda frame: frame.head(40),
    ),
]
