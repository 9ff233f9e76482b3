"""The second-order finish: L-BFGS over all rows at once, in float64.

Where labels are exact there is no noise for a small learning rate to average out, and what is left
of the error is curvature: quasi-Newton steps take it down further than any schedule. Weights are
float64 while it runs; the live network holds them rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kubestill.runtime.training.batches import Rows
from kubestill.runtime.training.losses import Loss, differentiable

ITERATIONS = 10
"""L-BFGS iterations a step: each call of torch's optimizer evaluates once more than it needs."""
CHUNK_ROWS = 8192
"""Rows evaluated at a time."""


class Finish:
    """Steps of L-BFGS (Liu & Nocedal 1989) with a strong Wolfe line search (torch.optim.LBFGS).

    Args:
        network: Takes over the weights that are found, in its own precision.
        loss: Mean over rows.
        rows: All rows; they are one batch.
        history: Pairs of steps and gradient changes that stand for the Hessian.
    """

    def __init__(self, network: nn.Module, loss: Loss, rows: Rows, *, history: int):
        self._network, self._loss, self._rows = network, loss, rows
        self._history = history
        self._exact = deepcopy(network).double()
        self._parameters = [p for p in self._exact.parameters() if p.requires_grad]
        self._optimizer = torch.optim.LBFGS(
            self._parameters,
            max_iter=ITERATIONS,
            history_size=history,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def __call__(self) -> Tensor:
        """Take `ITERATIONS` iterations; return the loss before them []."""
        loss: Any = self._optimizer.step(self._evaluate)
        self._publish()
        return torch.as_tensor(loss).float()

    def _evaluate(self) -> Tensor:
        """Return the loss over all rows, and leave its gradient in the parameters."""
        self._optimizer.zero_grad()
        count = self._rows.count
        total = torch.zeros((), dtype=torch.float64, device=self._parameters[0].device)
        for start in range(0, count, CHUNK_ROWS):
            rows = self._rows.between(start, min(start + CHUNK_ROWS, count))
            features, *targets = (_double(tensor) for tensor in rows)
            loss = differentiable(self._loss, self._exact(features), tuple(targets))
            share = loss * (len(features) / count)
            share.backward()
            total += share.detach()
        return total

    @torch.no_grad()
    def _publish(self) -> None:
        """Give the live network the weights, in its own precision."""
        for live, exact in zip(self._network.parameters(), self._exact.parameters(), strict=True):
            live.copy_(exact)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, in float64."""
        kept: dict[str, Any] = self._optimizer.state[self._parameters[0]]
        weights = parameters_to_vector(self._parameters).detach()
        size, blank = len(weights), torch.zeros_like(weights)

        def padded(name: str, width: int) -> Tensor:
            block = weights.new_zeros(self._history, width)
            for place, row in enumerate(kept.get(name, ())):
                block[place] = row
            return block

        scalars = [kept.get(name, 0) for name in _SCALARS]
        return {
            "weights": weights.clone(),
            "changes": padded("old_dirs", size),
            "steps": padded("old_stps", size),
            "weight_of_pair": padded("ro", 1),
            "direction": kept.get("d", blank).clone(),
            "gradient": kept.get("prev_flat_grad", blank).clone(),
            "scalars": torch.tensor(
                [len(kept.get("old_dirs", ())), *map(float, scalars)], dtype=torch.float64
            ),
        }

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        device = self._parameters[0].device
        moved = {name: tensor.to(device, copy=True) for name, tensor in saved.items()}
        vector_to_parameters(moved["weights"], self._parameters)
        self._publish()
        pairs, *scalars = moved["scalars"].tolist()
        values = dict(zip(_SCALARS, scalars, strict=True))
        if not values["n_iter"]:
            return
        count = int(pairs)
        state: dict[str, Any] = self._optimizer.state[self._parameters[0]]
        state.update(
            n_iter=int(values["n_iter"]),
            func_evals=int(values["func_evals"]),
            t=values["t"],
            prev_loss=values["prev_loss"],
            H_diag=moved["scalars"].new_tensor(values["H_diag"]),
            d=moved["direction"],
            prev_flat_grad=moved["gradient"],
            old_dirs=list(moved["changes"][:count].clone()),
            old_stps=list(moved["steps"][:count].clone()),
            ro=list(moved["weight_of_pair"][:count, 0].clone()),
        )


_SCALARS = ("n_iter", "func_evals", "t", "prev_loss", "H_diag")


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
