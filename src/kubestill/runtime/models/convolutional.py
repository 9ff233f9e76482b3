"""A small convolutional network, for images and other fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from kubestill.errors import Problems, nearest
from kubestill.runtime.models.layers import ACTIVATIONS

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Each by the dimensions of the grid, less one."""
_NORMS = ("batch", "layer", "none")


class GlobalMean(nn.Module):
    """The mean over the grid, as a layer that can be named."""

    def forward(self, field: Tensor) -> Tensor:
        """Map [B, C, *grid] to [B, C]."""
        return field.flatten(2).mean(2)


class Conv(nn.Module):
    """Stages of two 3 x 3 convolutions, each but the last halved by its maxima, then their mean.

    The form of VGG (Simonyan & Zisserman 2015) with the global mean of Lin et al. 2014: the number
    of weights does not depend on the size of the image.

    Args:
        shape: Channels and the grid, one or two dimensions: [C, L] or [C, H, W].
        outputs: Outputs of a row.
        channels: Width of each stage.
        activation: Makes the layer behind each convolution.
        norm: Which one stands between the two: `batch`, `layer` or `none`.
        dropout: Probability of dropping a channel of the mean.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        channels: Sequence[int],
        activation: Callable[[], nn.Module],
        norm: str,
        dropout: float,
    ):
        super().__init__()
        self.shape = tuple(shape)
        kind = len(shape) - 2
        below, smallest = self.shape[0], min(self.shape[1:])
        layers: list[nn.Module] = []
        for stage, width in enumerate(channels):
            if stage and smallest > 1:
                layers.append(_POOLS[kind](2))
                smallest //= 2
            for inputs in (below, width):
                # A norm has a bias of its own.
                plain = norm == "none"
                layers.append(_CONVOLUTIONS[kind](inputs, width, 3, padding=1, bias=plain))
                if not plain:
                    batch = norm == "batch"
                    layers.append(_BATCH_NORMS[kind](width) if batch else nn.GroupNorm(1, width))
                layers.append(activation())
            below = width
        self.body = nn.Sequential(*layers)
        self.mean = GlobalMean()
        self.head = nn.Linear(below, outputs)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, C * H * W] to [B, outputs]."""
        means = self.mean(self.body(features.reshape(-1, *self.shape)))
        return self.head(means if self.dropout is None else self.dropout(means))


def conv(
    in_features: int,
    out_features: int,
    channels: Sequence[int] = (32, 64),
    activation: str = "relu",
    norm: str = "batch",
    dropout: float = 0.0,
    input_shape: Sequence[int] | None = None,
) -> Conv:
    """Build a convolutional network for images (Simonyan & Zisserman 2015, with a global mean).

    The only feature is a tensor: an image [H, W] or [C, H, W], or a series [L].

    Args:
        in_features: Numbers of an image.
        out_features: Outputs of a row.
        channels: Width of each stage of two 3 x 3 convolutions; between stages, height and width
            are halved.
        activation: One of the activations of `mlp`.
        norm: `batch`, `layer` or `none`, behind each convolution.
        dropout: Probability of dropping a channel before the last layer, in [0, 1).
        input_shape: Shape of the image.

    Raises:
        InvalidInput: Listing every argument that cannot work.
    """
    problems = Problems()
    shape = tuple(input_shape or ())
    if not 1 <= len(shape) <= 3:
        what = f"a feature {list(shape)}" if shape else f"{in_features} features"
        remedy = f"cannot read {what}; give a single tensor [L], [H, W] or [C, H, W], or use mlp"
        problems.add("input_shape", input_shape, remedy)
    if not channels or any(width < 1 for width in channels):
        problems.add("channels", channels, "give at least one stage, each at least one channel")
    if activation not in ACTIVATIONS:
        problems.add("activation", activation, nearest(activation, ACTIVATIONS))
    if norm not in _NORMS:
        problems.add("norm", norm, nearest(norm, _NORMS))
    if not 0.0 <= dropout < 1.0:
        problems.add("dropout", dropout, "must be in [0, 1); 0 turns it off")
    problems.raise_if_any()
    return Conv(
        shape if len(shape) == 3 else (1, *shape),
        out_features,
        channels=channels,
        activation=ACTIVATIONS[activation],
        norm=norm,
        dropout=dropout,
    )
