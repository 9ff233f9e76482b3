"""From what the network computes to target units, and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base.values import Number, read_as
from kubestill.runtime.models.moments import Moments


class Decoder(nn.Module):
    """Target standardisation, one mean and std an output; identity for classification."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float] = (), std: Iterable[float] = ()):
        super().__init__()
        self._spec = {"mean": list(mean), "std": list(std)}
        self.identity = not self._spec["mean"]
        for name, values in self._spec.items():
            buffer = None if self.identity else torch.tensor(values, dtype=torch.float32)
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def fit(
        cls,
        blocks: Iterable[np.ndarray],
        weights: Iterable[np.ndarray | None] = itertools.repeat(None),
    ) -> Decoder:
        """Measure regression targets in one pass over `blocks`, each [N, T] float32.

        Rows without a target (NaN, in unlabelled synthetic data) do not count.

        Args:
            blocks: All rows, in pieces.
            weights: How many rows each row of a block counts for, [N]; None where all do the same.

        Raises:
            InvalidInput: A target is infinite, or there is none at all.
        """
        moments: Moments | None = None
        for block, counts in zip(blocks, weights, strict=False):
            moments = moments or Moments(block.shape[1])
            moments.update(block, counts)
        if moments is None or moments.empty:
            raise InvalidInput([Problem("target", "no value", "train on rows that have a target")])
        if moments.infinite:
            raise InvalidInput([Problem("target", "inf", "remove rows with an infinite target")])
        return cls(moments.mean, moments.std)

    def forward(self, outputs: Tensor) -> Tensor:
        """Turn standardised outputs [B, T] into target units; leave logits [B, K] alone."""
        return outputs if self.identity else outputs * self.std + self.mean

    def standardise(self, target: Tensor) -> Tensor:
        """Turn a target [B, T] in its own units into what the network learns."""
        return target if self.identity else (target - self.mean) / self.std

    def to_spec(self) -> dict[str, list[float]]:
        """Return what `from_spec` needs, as JSON."""
        return dict(self._spec)

    @classmethod
    def from_spec(cls, spec: dict[str, Any], targets: int) -> Decoder:
        """Rebuild the decoder, bit for bit.

        Args:
            spec: What `to_spec` gave.
            targets: How many numbers it scales; 0 for classification.

        Raises:
            CorruptData: It is no decoder, or one of other targets.
        """
        read = read_as(_Spec, spec, source="the model spec", what="decoder")
        if len(read.mean) != targets or len(read.std) != targets:
            raise CorruptData(f"the model spec has a decoder that does not fit {targets} targets")
        return cls(read.mean, read.std)


@dataclass(frozen=True, kw_only=True)
class _Spec:
    mean: tuple[Number, ...]
    std: tuple[Annotated[Number, Field(gt=0)], ...]
