"""A small transformer that reads texts n-gram by n-gram, in their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kubestill.errors import Problems
from kubestill.runtime.models.embed import embedding_size

_GAIN = 16.0
"""What embeddings are multiplied by: a step moves them as one of so many times the rate would,
since most batches lack most n-grams."""
_NEVER = -1e9
"""Score of what is not there; finite, so that a text without n-grams gives no NaN."""


class Transformer(nn.Module):
    """Build a small transformer (Vaswani et al. 2017, normalised first) over the n-grams of texts.

    All texts share embeddings and layers. The mean over a text's n-grams goes into a linear layer,
    beside the other columns.

    Args:
        in_features: Features of a row, ids of texts last.
        out_features: Outputs of a row.
        vocabulary: Categories of each code before those ids.
        texts: Ids of each text.
        text_buckets: Embeddings that all n-grams share, by their hash.
        width: Of an embedding and of every layer.
        layers: Blocks of attention and feed-forward layer.
        heads: Of the attention; they share the width.
        dropout: Probability of dropping a unit behind each of both.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """

    reads = "ids"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        vocabulary: Sequence[int],
        texts: Sequence[int],
        text_buckets: int = 8192,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        problems = Problems()
        for name, value in (("text_buckets", text_buckets), ("width", width), ("heads", heads)):
            if value < 1:
                problems.add(name, value, "give 1 or more")
        if layers < 0:
            problems.add("layers", layers, "give 0 or more")
        if heads >= 1 and width % heads:
            problems.add("width", width, f"must be a multiple of the {heads} heads")
        if not 0.0 <= dropout < 1.0:
            problems.add("dropout", dropout, "give a probability from 0 up to, but not, 1")
        problems.raise_if_any()
        self.plain = in_features - len(vocabulary) - sum(texts)
        self.texts, self.buckets = tuple(texts), text_buckets
        self.tables = nn.ModuleList(nn.Embedding(n + 1, embedding_size(n)) for n in vocabulary)
        grams = torch.empty(text_buckets + 1, width).normal_(std=0.02 / _GAIN)
        self.grams = nn.Embedding(text_buckets + 1, width, _weight=grams)
        self.places = nn.Parameter(torch.empty(max(texts), width).normal_(std=0.02))
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        beside = self.plain + sum(embedding_size(n) for n in vocabulary)
        self.head = nn.Linear(beside + width * len(texts), out_features)
        with torch.no_grad():
            for table in self.tables:
                assert isinstance(table, nn.Embedding)
                table.weight[0] = 0.0  # missing and unseen labels

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, F], codes and ids last, to [B, out_features]."""
        codes = features[:, self.plain :].long()
        found = [features[:, : self.plain]]
        found += [table(codes[:, place]) for place, table in enumerate(self.tables)]
        ids = codes[:, len(self.tables) :].split(self.texts, dim=1)
        return self.head(torch.cat([*found, *(self._read(one) for one in ids)], dim=1))

    def _read(self, ids: Tensor) -> Tensor:
        """Map ids + 1 [B, L], 0 behind the last, to [B, width]."""
        there = ids > 0
        if not torch.compiler.is_compiling():
            # Most texts are far shorter than the longest that there may be.
            longest = max(int(there.sum(1).max()), 1) if len(ids) else 1
            ids, there = ids[:, :longest], there[:, :longest]
        places = torch.where(there, (ids - 1) % self.buckets + 1, 0)
        hidden = self.grams(places) * _GAIN + self.places[: ids.shape[1]]
        mask = torch.where(there, 0.0, _NEVER)[:, None, None, :]
        for block in self.blocks:
            hidden = block(hidden, mask)
        hidden = self.norm(hidden) * there[:, :, None]
        return hidden.sum(1) / there.sum(1, keepdim=True).clamp(min=1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.given = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map [B, L, width] to the same; `mask` [B, 1, 1, L] is added to scores."""
        parts = self.asked(self.first(hidden)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3]) + mask
        seen = (scores.softmax(3) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + self.drop(self.given(seen))
        return hidden + self.drop(self.narrower(F.gelu(self.wider(self.second(hidden)))))
