"""The networks that have a name of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kubestill.errors import Problems, nearest
from kubestill.runtime.models.convolutional import conv
from kubestill.runtime.models.functions import fourier, resmlp, siren
from kubestill.runtime.models.layers import ACTIVATIONS
from kubestill.runtime.models.operators import fno
from kubestill.runtime.models.tabular import tabm
from kubestill.runtime.models.transformer import Transformer

__all__ = ["ACTIVATIONS", "NETWORKS", "NORMS", "Residual", "mlp"]

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
}


class Residual(nn.Module):
    """Adds what its block computes to what it was given."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, W] to [B, W]."""
        return features + self.block(features)


def mlp(
    in_features: int,
    out_features: int,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    dropout: float = 0.0,
    norm: str = "none",
    residual: bool = False,
) -> nn.Sequential:
    """Build a fully connected network, [B, in_features] to [B, out_features].

    Without dropout, norm and residual it is exactly `Sequential(Linear, Act, ..., Linear)`, which
    the training engine's fused step recognises.

    Args:
        in_features: Features of a row.
        out_features: Outputs of a row.
        hidden: Units of each hidden layer; empty gives a linear model.
        activation: One of `ACTIVATIONS`.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        norm: One of `NORMS`, between each hidden layer and its activation.
        residual: Skip connections around hidden layers that keep their width (He et al. 2016).

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    if any(units < 1 for units in hidden):
        problems.add("hidden", hidden, "give each hidden layer at least one unit")
    if activation not in ACTIVATIONS:
        problems.add("activation", activation, nearest(activation, ACTIVATIONS))
    if not 0.0 <= dropout < 1.0:
        problems.add("dropout", dropout, "give a probability from 0 up to, but not, 1")
    if norm not in NORMS:
        problems.add("norm", norm, nearest(norm, NORMS))
    if residual and all(a != b for a, b in zip(hidden, hidden[1:], strict=False)):
        problems.add("residual", residual, "needs two hidden layers in a row of the same width")
    problems.raise_if_any()

    layers: list[nn.Module] = []
    width = in_features
    for units in hidden:
        block = [nn.Linear(width, units), *_after(units, activation, dropout, norm)]
        skips = residual and layers and width == units
        layers += [Residual(nn.Sequential(*block))] if skips else block
        width = units
    return nn.Sequential(*layers, nn.Linear(width, out_features))


def _after(units: int, activation: str, dropout: float, norm: str) -> list[nn.Module]:
    make_norm = NORMS[norm]
    after = [make_norm(units)] if make_norm else []
    after.append(ACTIVATIONS[activation]())
    return [*after, nn.Dropout(dropout)] if dropout else after


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "conv": conv,
    "fno": fno,
    "fourier": fourier,
    "mlp": mlp,
    "resmlp": resmlp,
    "siren": siren,
    "tabm": tabm,
    "transformer": Transformer,
}
"""Every network that has a name; anything else is given as `package.module:attribute`."""
