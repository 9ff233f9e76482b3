"""Learned embeddings of large categorical columns and of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problems

_GAIN = 16.0
"""What embeddings of text are multiplied by: a step moves them as one of so many times the rate
would, since most batches lack most n-grams."""


def embedding_size(categories: int) -> int:
    """Return the width of an embedding: min(50, round(1.6 n^0.56)), fastai's rule of thumb."""
    return min(50, round(1.6 * categories**0.56))


@dataclass(frozen=True, kw_only=True)
class TextArgs:
    """How text is embedded: arguments that every network takes beside its own."""

    text_buckets: int = 32768
    """Embeddings that all n-grams of a column share, by their hash."""
    text_dim: int = 16
    """Width of an embedding."""

    @classmethod
    def split(cls, given: Mapping[str, Any]) -> tuple[TextArgs, dict[str, Any]]:
        """Return these arguments, and the network's own.

        Raises:
            InvalidInput: They are no such numbers; both are looked at.
        """
        problems = Problems()
        mine = {name: given[name] for name in vars(cls()) if name in given}
        for name, most in (("text_buckets", 1 << 24), ("text_dim", 4096)):
            value = mine.get(name, 1)
            whole = isinstance(value, int | float) and not isinstance(value, bool)
            if not (whole and float(value).is_integer() and 1 <= value <= most):
                remedy = f"give a whole number from 1 to {most:,}"
                problems.add(f"network_args.{name}", value, remedy)
        if problems:
            raise InvalidInput(problems)
        own = {name: value for name, value in given.items() if name not in mine}
        return cls(**{name: int(value) for name, value in mine.items()}), own


class Bag(nn.Module):
    """Sums the embeddings of a text's n-grams, over the root of their number, times a constant.

    The sum of n independent embeddings grows with that root, so that long and short texts come in
    one scale. A text without n-grams is zero. Bags of hashed n-grams are those of Joulin et al.
    2017 ("fastText").
    """

    def __init__(self, buckets: int, width: int):
        super().__init__()
        self.buckets = buckets
        # Nearly nothing: an n-gram that training never met adds no noise to those that it did.
        self.weight = nn.Parameter(torch.empty(buckets + 1, width).normal_(std=0.01 / _GAIN))
        with torch.no_grad():
            self.weight[0] = 0.0  # behind the last n-gram

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids + 1 [B, L], 0 behind the last, to [B, width]."""
        there = ids > 0
        places = torch.where(there, (ids - 1) % self.buckets + 1, 0)
        if torch.compiler.is_exporting():
            # The same without an operator that other runtimes lack.
            total = self.look_up(places).sum(1)
        else:
            total = F.embedding_bag(places, self.table(), mode="sum", padding_idx=0)
        return total * (_GAIN / there.sum(1, keepdim=True).clamp(min=1).sqrt())

    def table(self) -> Tensor:
        """Return the embeddings, [buckets + 1, width]."""
        return self.weight

    def look_up(self, places: Tensor) -> Tensor:
        """Return the embeddings at places [B, L], [B, L, width]."""
        return F.embedding(places, self.table())


class Embed(nn.Module):
    """Replaces the codes and ids at the end of the features by embeddings.

    Row 0 of each table stands for missing and unseen categories and starts at zero, so that a
    category never met in training is neutral instead of random.
    """

    def __init__(
        self,
        in_features: int,
        vocabulary: Sequence[int],
        texts: Sequence[int] = (),
        args: TextArgs | None = None,
    ):
        super().__init__()
        args = args or TextArgs()
        self.plain = in_features - len(vocabulary) - sum(texts)
        self.tables = nn.ModuleList(nn.Embedding(n + 1, embedding_size(n)) for n in vocabulary)
        self.texts = tuple(texts)
        self.bags = nn.ModuleList(Bag(args.text_buckets, args.text_dim) for _ in texts)
        self.out_features = (
            self.plain + sum(embedding_size(n) for n in vocabulary) + len(texts) * args.text_dim
        )
        with torch.no_grad():
            for table in self.tables:
                assert isinstance(table, nn.Embedding)
                table.weight[0] = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Map float32 features [B, F], codes and ids last, to [B, out_features]."""
        codes = features[:, self.plain :].long()
        embedded = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        if self.texts:  # torch.export cannot read back a split into no parts
            ids = codes[:, len(self.tables) :].split(self.texts, dim=1)
            embedded += [bag(one) for bag, one in zip(self.bags, ids, strict=True)]
        return torch.cat([features[:, : self.plain], *embedded], dim=1)
