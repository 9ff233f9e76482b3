"""Learned embeddings of large categorical columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Embed", "embedding_size"]


def embedding_size(categories: int) -> int:
    """Return the width of an embedding: min(50, round(1.6 n^0.56)), fastai's rule of thumb."""
    return min(50, round(1.6 * categories**0.56))


class Embed(nn.Module):
    """Replaces the code columns at the end of the features by embeddings.

    Row 0 of each table stands for missing and unseen categories and starts at zero, so that a
    category never met in training is neutral instead of random.
    """

    def __init__(self, in_features: int, vocabulary: Sequence[int]):
        super().__init__()
        self.plain = in_features - len(vocabulary)
        self.tables = nn.ModuleList(nn.Embedding(n + 1, embedding_size(n)) for n in vocabulary)
        self.out_features = self.plain + sum(embedding_size(n) for n in vocabulary)
        with torch.no_grad():
            for table in self.tables:
                assert isinstance(table, nn.Embedding)
                table.weight[0] = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Map float32 features [B, F], codes last, to [B, out_features]."""
        codes = features[:, self.plain :].long()
        embedded = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return torch.cat([features[:, : self.plain], *embedded], dim=1)
