"""Build the network of a training run and prove on one batch that it fits the data.

What a network receives:

- A factory that names `in_features` (as `mlp` does) gets rows of features [B, F].
- Any other, on a dataset whose only feature is one tensor column, gets that column's own shape
  [B, *shape]; where the first convolution of the network has as many spatial dimensions as the
  column has dimensions ([H, W] and Conv2d, [L] and Conv1d), with a channel dimension of 1 in front.
- Otherwise, rows of features.

Arguments that a factory names in its signature are filled in unless the user gave them:
`in_features`, `input_shape` (as in the schema), `in_channels` (the first of three dimensions, else
1), `out_features` and `num_classes` (both the number of outputs: 1 for binary).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.arguments import fit_arguments, takes_anything
from kubestill.runtime.models.embed import Embed
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.resolve import Factory, resolve_network

if TYPE_CHECKING:
    from kubestill.runtime.datasets.decode import RawLayout

__all__ = ["Built", "Shaped", "build", "build_network"]

DRY_ROWS = 3


class Shaped(nn.Module):
    """Gives feature rows [B, F] back the shape [B, *shape] that the network expects."""

    def __init__(self, shape: tuple[int, ...], network: nn.Module):
        super().__init__()
        self.shape = shape
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, F] to the network's outputs."""
        return self.network(features.reshape(-1, *self.shape))


@dataclass(frozen=True)
class Built:
    """A network and the arguments it was finally built with."""

    network: nn.Module
    """[B, F] features to [B, outputs]."""
    arguments: dict[str, Any]
    """The user's and those filled in; giving them again builds the same architecture."""
    factory: Factory


def build_network(
    network: str,
    network_args: Mapping[str, Any],
    *,
    layout: RawLayout,
    encoder: Encoder,
    outputs: int,
    seed: int,
) -> nn.Module:
    """Build the network, [B, F] features to [B, outputs]; see `build`."""
    built = build(network, network_args, layout=layout, encoder=encoder, outputs=outputs, seed=seed)
    return built.network


def build(
    network: str,
    network_args: Mapping[str, Any],
    *,
    layout: RawLayout,
    encoder: Encoder,
    outputs: int,
    seed: int,
    prove: bool = True,
) -> Built:
    """Build the network on the CPU, reproducibly, without touching the global random state.

    Args:
        network: A name ("mlp") or an import path ("package.module:attribute").
        network_args: Keyword arguments for it.
        layout: Where the feature columns sit in raw rows.
        encoder: What gives the features.
        outputs: Outputs a row: classes, 1 for binary, target values for regression.
        seed: Seeds the initial weights.
        prove: Send one batch through it, which also gives lazy layers their sizes.

    Raises:
        InvalidInput: Unknown network or arguments, or a batch that does not come out as [B,
            outputs].
    """
    factory = resolve_network(network)
    embed = None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if encoder.vocabulary:
            embed = Embed(encoder.width, encoder.vocabulary)
        shape = _tensor_shape(layout)
        offers: dict[str, Any] = {
            "in_features": embed.out_features if embed else encoder.width,
            "out_features": outputs,
            "num_classes": outputs,
        }
        if shape:
            offers["input_shape"] = list(shape)
            offers["in_channels"] = shape[0] if len(shape) == 3 else 1
        arguments = fit_arguments(factory, network_args, offers, prefix="network_args.")
        made, arguments = _call(network, factory, arguments, outputs)
        seen: tuple[int, ...] = (offers["in_features"],)
        if shape and "in_features" not in inspect.signature(factory).parameters:
            seen = _expected_shape(made, shape)
            made = Shaped(seen, made)
        whole = nn.Sequential(embed, made) if embed else made
        if prove:
            _prove(network, whole, torch.zeros(DRY_ROWS, encoder.width), seen, outputs)
    return Built(whole, arguments, factory)


def _tensor_shape(layout: RawLayout) -> tuple[int, ...] | None:
    features = layout.schema.features
    return features[0].shape if len(features) == 1 and features[0].kind == "tensor" else None


def _expected_shape(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            spatial = len(module.kernel_size)
            return (1, *shape) if spatial == len(shape) else shape
    return shape


def _call(
    network: str, factory: Factory, arguments: dict[str, Any], outputs: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Call the factory; one that takes `**kwargs`, as torchvision's, is offered `num_classes`."""
    attempts = [arguments]
    if takes_anything(factory) and not arguments.keys() & {"out_features", "num_classes"}:
        attempts.insert(0, {**arguments, "num_classes": outputs})
    for attempt in attempts:
        try:
            return factory(**attempt), attempt
        except InvalidInput as error:
            raise InvalidInput(
                Problem(f"network_args.{p.field}", p.value, p.remedy) for p in error.problems
            ) from error
        except (Exception, SystemExit) as error:
            refused = isinstance(error, TypeError) and "num_classes" in str(error)
            if attempt is attempts[-1] or not refused:
                remedy = f"{network} raised {type(error).__name__}: {error}"
                raise InvalidInput([Problem("network_args", attempt, remedy)]) from error
    raise AssertionError


def _prove(
    name: str, network: nn.Module, features: Tensor, seen: tuple[int, ...], outputs: int
) -> None:
    """Send one batch through the network; this also gives lazy modules their sizes."""
    training = network.training
    network.eval()
    given = [len(features), *seen]
    try:
        with torch.no_grad():
            result: object = network(features)
    except (Exception, SystemExit) as error:
        remedy = f"failed on a batch of shape {given} with {type(error).__name__}: {error}"
        raise InvalidInput([Problem("network", name, remedy)]) from error
    finally:
        network.train(training)
    expected = [len(features), outputs]
    got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
    if got != expected:
        remedy = (
            f"turned a batch of shape {given} into {got}, expected {expected}; set its number of "
            f"outputs to {outputs} through network_args"
        )
        raise InvalidInput([Problem("network", name, remedy)])
