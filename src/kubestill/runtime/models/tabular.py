"""A network for tables: an ensemble of MLPs that share their matrices, on numbers cut into bins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kubestill.errors import Problems, nearest
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.layers import ACTIVATIONS

MOST_BINS = 4096
"""Bins of all numbers together: of wide tensors, 48 each would make a first layer of millions."""


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding of numbers (Gorishniy et al. 2022, section 3.2, eq. 1).

    Each number becomes a feature a bin: 0 below the bin, 1 above it, and the share of the bin in
    between. A linear layer on them is any function that is linear within bins: a threshold costs
    one weight. The numbers themselves stay, for what lies outside of all bins.

    Args:
        numbers: Features that are encoded, the first of a row.
        bins: Bins of each.
    """

    lower: Tensor
    per_width: Tensor

    def __init__(self, numbers: int, bins: int):
        super().__init__()
        self.numbers, self.bins = numbers, bins
        self.register_buffer("lower", torch.zeros(numbers, bins))
        self.register_buffer("per_width", torch.zeros(numbers, bins))
        # Of standardised numbers, until `fit` sets them.
        self.fit(np.tile(np.linspace(-2.0, 2.0, bins + 1), (numbers, 1)))

    @torch.no_grad()
    def fit(self, edges: NDArray[np.float64]) -> None:
        """Take the edges of the bins.

        Args:
            edges: [numbers, bins + 1], in rising order; a bin without a width is never used.
        """
        width = np.diff(edges, axis=1)
        per_width = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        self.lower.copy_(torch.from_numpy(edges[:, :-1]))
        self.per_width.copy_(torch.from_numpy(per_width))

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, F] to [B, numbers * bins + F], the features last."""
        numbers = features[:, : self.numbers, None]
        encoded = ((numbers - self.lower) * self.per_width).clamp(0.0, 1.0).flatten(1)
        return torch.cat([encoded, features], dim=1)


class Members(nn.Module):
    """One layer of all members (BatchEnsemble, Wen et al. 2020, eq. 1): matrix shared, rest own.

    Args:
        members: Of the ensemble.
        inputs: Width below.
        outputs: Width above.
        shared: Whether all members are given the same, as the first layer's are.
    """

    def __init__(self, members: int, inputs: int, outputs: int, *, shared: bool = False):
        super().__init__()
        self.in_features, self.shared = inputs, shared
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.below = nn.Parameter(torch.ones(members, inputs))
        self.above = nn.Parameter(torch.ones(members, outputs))
        self.bias = nn.Parameter(torch.empty(members, outputs))
        bound = 1 / math.sqrt(inputs)
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            self.bias.uniform_(-bound, bound)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, M, inputs], or [B, inputs] where it is shared, to [B, M, outputs]."""
        if self.shared:
            # One product with all members' matrices: copies of wide rows would cost more.
            products = self.matmul(hidden, self.matrices()).unflatten(1, (len(self.below), -1))
        else:
            products = self.matmul(hidden * self.below, self.weight)
        return products * self.above + self.bias

    def matrices(self) -> Tensor:
        """Return the matrices of all members, [M * outputs, inputs]."""
        return (self.below[:, None] * self.weight).flatten(0, 1)

    def matmul(self, hidden: Tensor, matrices: Tensor) -> Tensor:
        """Return hidden [..., inputs] times matrices [outputs, inputs]."""
        return F.linear(hidden, matrices)


class TabM(nn.Module):
    """TabM (Gorishniy et al. 2024): members that share their matrices, and learn one by one.

    In training it gives every member's answer, and the loss is the mean of theirs
    (`losses.Ensemble`); in evaluation it gives the mean answer: of a regression the mean of values,
    of classes that of probabilities, as logits. The mean of logits would be as sure as the surest
    member, of rows that no member has seen the like of (Lakshminarayanan et al. 2017, section 2.4).
    """

    def __init__(
        self,
        encoding: PiecewiseLinear | None,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int],
        members: int,
        activation: str,
        dropout: float,
        task: str,
    ):
        super().__init__()
        self.encoding, self.members, self.task = encoding, members, task
        width = in_features
        layers: list[nn.Module] = []
        for units in hidden:
            first = not layers
            layers += [Members(members, width, units, shared=first), ACTIVATIONS[activation]()]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = units
        lowest = layers[0]
        assert isinstance(lowest, Members)
        with torch.no_grad():  # what makes the members differ: each weighs the features its own way
            lowest.below.normal_()
        self.body = nn.Sequential(*layers)
        bound = 1 / math.sqrt(width)
        self.head = nn.Parameter(torch.empty(members, width, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, out_features).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, F] to [B, out_features]; in training to [B, M, out_features]."""
        encoded = features if self.encoding is None else self.encoding(features)
        hidden = self.body(encoded)
        answers = torch.matmul(hidden[:, :, None], self.head)[:, :, 0] + self.bias
        if self.training:
            return answers
        if self.members > 1 and self.task == "binary":
            chances = [F.logsigmoid(answers), F.logsigmoid(-answers)]
            yes, no = (torch.logsumexp(chance, 1) for chance in chances)
            return yes - no
        if self.members > 1 and self.task == "multiclass":
            return torch.logsumexp(F.log_softmax(answers, 2), 1) - math.log(self.members)
        return answers.mean(1)


def tabm(
    in_features: int,
    out_features: int,
    numeric_features: int = 0,
    hidden: Sequence[int] = (128, 128),
    members: int = 4,
    bins: int = 48,
    activation: str = "relu",
    dropout: float = 0.1,
    target_task: str = "",
) -> TabM:
    """Build an ensemble of MLPs that share most weights, on binned numbers, for tables.

    A step costs about `members` times that of an `mlp` of the same layers. Gorishniy et al. 2024
    ("TabM") and 2022 (the bins, whose edges are quantiles of the training rows).

    Args:
        in_features: Features of a row.
        out_features: Outputs of a row.
        numeric_features: How many of the features, the first ones, are numbers to cut into bins.
        hidden: Units of each hidden layer.
        members: Members of the ensemble; they share the matrices of hidden layers.
        bins: Bins of each number, at quantiles of the training rows; 0 takes numbers as they are.
            Each has fewer where there are many numbers: together they have at most 4,096.
        activation: One of the activations of `mlp`.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        target_task: Of `binary` and `multiclass`, the members' probabilities are averaged; of
            anything else, their outputs.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    if not hidden or any(units < 1 for units in hidden):
        problems.add("hidden", hidden, "give at least one hidden layer, each at least one unit")
    if activation not in ACTIVATIONS:
        problems.add("activation", activation, nearest(activation, ACTIVATIONS))
    if not 0.0 <= dropout < 1.0:
        problems.add("dropout", dropout, "give a probability from 0 up to, but not, 1")
    if members < 1:
        problems.add("members", members, "give at least one")
    if bins < 0:
        problems.add("bins", bins, "give 0 or more")
    if not 0 <= numeric_features <= in_features:
        problems.add("numeric_features", numeric_features, f"give 0 to {in_features}")
    problems.raise_if_any()
    bins = min(bins, MOST_BINS // max(1, numeric_features))
    encoding = PiecewiseLinear(numeric_features, bins) if bins and numeric_features else None
    width = in_features + (numeric_features * bins if encoding else 0)
    return TabM(
        encoding,
        width,
        out_features,
        hidden=hidden,
        members=members,
        activation=activation,
        dropout=dropout,
        task=target_task,
    )


def fit_bins(
    network: nn.Module,
    encoder: Encoder,
    raw: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
) -> None:
    """Give a new network the edges of its bins, where it has bins.

    Args:
        network: Not trained yet.
        encoder: Whose features it reads.
        raw: Training rows [N, R].
        weights: How many rows each counts for, [N]; None where all do the same.
    """
    for module in network.modules():
        if isinstance(module, PiecewiseLinear):
            module.fit(encoder.find_edges(raw, module.bins, weights))
