"""The scores that a training run follows: on validation rows, or over its whole domain."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kubestill.runtime.metrics.catalog import TASKS
from kubestill.runtime.metrics.running import ON_VALIDATION_ROWS, OVER_THE_DOMAIN, Size
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.training.batches import Rows

_CHUNK = 8192


class Validation:
    """Scores a network on fixed rows, a chunk at a time: the memory it takes is independent of N.

    `metrics.catalog` says which metrics a task has, `metrics.running` how each is computed.

    Args:
        rows: Encoded features [N, F] and targets. Validation rows have a class index int64 [N], or
            values in the target's own units float32 [N, T]; those of a whole domain have targets as
            the loss takes them.
        task: multiclass, binary or regression.
        decoder: Turns standardised outputs into target units.
        whole_domain: The rows are those that are trained on, and are the whole domain.
        weighted: The last of the targets is how many rows each row counts for, [N].
    """

    def __init__(
        self,
        rows: Rows,
        *,
        task: str,
        decoder: Decoder,
        whole_domain: bool = False,
        weighted: bool = False,
    ):
        self._rows, self._task, self._decoder = rows, task, decoder
        self._whole_domain, self._weighted = whole_domain, weighted
        self.where = "over the whole domain" if whole_domain else "on the validation rows"
        self.followed = "whole-domain" if whole_domain else "validation"
        names = TASKS[task].enumerated if whole_domain else TASKS[task].validated
        formulas = OVER_THE_DOMAIN if whole_domain else ON_VALIDATION_ROWS
        self._metrics = {name: formulas[name] for name in names}
        # What two metrics are made of is computed once.
        self._sums = {one.chunk: one for one in self._metrics.values()}
        _, one, *_ = rows.between(0, 1)
        count: float = rows.count
        if weighted:
            count = sum(float(given[-1].double().sum()) for given in self._chunks())
        spread = self._measure_spread(count) if task == "regression" and not whole_domain else 1.0
        self._size = Size(rows=count, values=count * one.numel(), spread=spread)

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return the task's metrics. Leaves the network's mode and all random generators alone."""
        training = network.training
        network.eval()
        device = next(network.parameters()).device
        totals = torch.zeros(len(self._sums), dtype=torch.float64, device=device).unbind()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for features, target, *rest in self._chunks():
                given = self._compare(network(features).float(), target)
                weights = rest[-1] if self._weighted else None
                totals = [
                    one.add(total, one.of(*given, weights))
                    for total, one in zip(totals, self._sums.values(), strict=True)
                ]
        network.train(training)
        found = dict(zip(self._sums, torch.stack(list(totals)).tolist(), strict=True))
        return {
            name: metric.value(found[metric.chunk], self._size)
            for name, metric in self._metrics.items()
        }

    def _chunks(self) -> Iterator[tuple[Tensor, ...]]:
        count = self._rows.count
        for start in range(0, count, _CHUNK):
            yield self._rows.between(start, min(start + _CHUNK, count))

    def _compare(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the formulas of the task take; see `Running.chunk`."""
        if self._task == "binary":
            return outputs, target.reshape(outputs.shape).float()
        if self._task == "multiclass":
            return outputs, target
        if not self._whole_domain:
            error = self._decoder(outputs) - target
        elif self._decoder.identity:
            error = outputs - target
        else:
            error = (outputs - target) * self._decoder.std
        error = error.double().abs()
        return error, error

    def _measure_spread(self, count: float) -> float:
        """Return the sum of squares of the targets about their means, above 0."""
        mean = torch.zeros((), dtype=torch.float64)
        for _, target, *rest in self._chunks():
            if self._weighted:
                mean = mean + rest[-1].double() @ target.double() / count
            else:
                mean = mean + target.mean(0).double() * (len(target) / count)
        mean, total = mean.float(), 0.0
        for _, target, *rest in self._chunks():
            squares = (target - mean).double().square()
            total += float((squares * rest[-1][:, None] if self._weighted else squares).sum())
        return max(total, torch.finfo(torch.float64).tiny)
