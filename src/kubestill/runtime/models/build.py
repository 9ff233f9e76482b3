"""Build the network of a training run and prove on one batch that it fits the data.

What a network receives is its contract, `reads`:

- `rows`: features [B, F].
- `tensor`: the only feature, in its own shape [B, *shape].
- `ids`: features [B, F] whose last are codes of categories and ids of n-grams, as the encoder gives
  them (see `encoder`): 0 where there is none, which is the mask.
- `1d`, `2d`, `3d`: fields with their channels in front, [B, C, L], [B, C, H, W], [B, C, D, H, W].
  All features are tensors on one grid; their channels are joined in schema order, and a tensor
  without a dimension for channels is one.

The setting `network_reads` says which; where it is empty, the attribute `reads` of the network: of
its class or of the function that makes it. The networks of this package read rows. One that
declares nothing gets the only feature in its own shape if that is a tensor, in the form of its
first convolution if it has one, and rows otherwise. Names of arguments decide nothing.

What it gives is [B, outputs], or the target in its shape [B, *shape], where a channel dimension of
1 may stand in front.

Arguments that a factory names in its signature are filled in unless the user gave them:
`in_features`, `numeric_features` (how many of them, the first, are numbers that were scaled),
`input_shape` (as in the schema), `in_channels` (the first of three dimensions, else
1; what it reads where that is known), `out_features` and `num_classes` (both the number of outputs:
1 for binary), `target_task` (as in the schema), `vocabulary` and `texts` (categories of each code,
ids of each text), and for a target of two dimensions and more `output_shape` and `out_channels`.

Where columns of text are among the features, every network that reads no ids takes `text_buckets`
and `text_dim` beside its own arguments: text reaches it embedded, as numbers behind the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from kubestill.errors import CorruptData, InvalidInput, Problem, nearest
from kubestill.runtime.base.arguments import fit_arguments, takes_anything
from kubestill.runtime.models.embed import Embed, TextArgs
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.networks import NETWORKS
from kubestill.runtime.models.resolve import Factory, resolve_network

if TYPE_CHECKING:
    from kubestill.runtime.datasets.decode import RawLayout

Reads = Literal["rows", "ids", "tensor", "1d", "2d", "3d"]

DRY_ROWS = 3


class Shaped(nn.Module):
    """Gives feature rows [B, F] the shape [B, *shape] that the network reads, and takes its own."""

    def __init__(self, shape: tuple[int, ...], network: nn.Module):
        super().__init__()
        self.shape = shape
        self.network = network
        self.register_state_dict_post_hook(_keep_tensors)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, F] to [B, outputs]."""
        outputs = self.network(features.reshape(-1, *self.shape))
        return outputs.flatten(1) if outputs.dim() > 2 else outputs


def _keep_tensors(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Leave out what a library's network puts into its state besides numbers."""
    for name in [name for name, value in state.items() if not isinstance(value, Tensor)]:
        del state[name]


@dataclass(frozen=True)
class Built:
    """A network and the arguments it was finally built with."""

    network: nn.Module
    """[B, F] features to [B, outputs]."""
    arguments: dict[str, Any]
    """The user's and those filled in; giving them again builds the same architecture."""
    factory: Factory
    reads: str | tuple[int, ...]
    """`rows`, `ids`, or the shape of a row as the network gets it."""


def build_network(
    network: str,
    network_args: Mapping[str, Any],
    *,
    layout: RawLayout,
    encoder: Encoder,
    seed: int,
    reads: str = "",
) -> nn.Module:
    """Build the network, [B, F] features to [B, outputs]; see `build`."""
    built = build(network, network_args, layout=layout, encoder=encoder, seed=seed, reads=reads)
    return built.network


def build(
    network: str,
    network_args: Mapping[str, Any],
    *,
    layout: RawLayout,
    encoder: Encoder,
    seed: int,
    reads: str | Sequence[int] | None = "",
    prove: bool = True,
) -> Built:
    """Build the network on the CPU, reproducibly, without touching the global random state.

    Args:
        network: A name ("mlp") or an import path ("package.module:attribute").
        network_args: Keyword arguments for it.
        layout: Where the feature columns sit in raw rows.
        encoder: What gives the features.
        seed: Seeds the initial weights.
        reads: One of `Reads`, or "" for what the network declares. Of a model's spec: what `Built`
            said, or None for one of an earlier version.
        prove: Send one batch through it, which also gives lazy layers their sizes.

    Raises:
        InvalidInput: Unknown network or arguments, features that do not come in the form that it
            reads, or a batch that does not come out as [B, outputs] or in the target's shape.
    """
    factory = resolve_network(network)
    embed, own = None, dict(network_args)
    text = TextArgs()
    ids = (reads or _declared(factory)) == "ids"
    if ids and not encoder.texts:
        remedy = "reads the n-grams of text, and no column is; import one with kinds={...: 'text'}"
        raise InvalidInput([Problem("network", network, remedy)])
    if encoder.texts and not ids:
        text, own = TextArgs.split(network_args)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if (encoder.vocabulary or encoder.texts) and not ids:
            embed = Embed(encoder.width, encoder.vocabulary, encoder.texts, text)
        width = embed.out_features if embed else encoder.width
        earlier = reads is None
        if reads == "":
            reads = _declared(factory) or ("rows" if network in NETWORKS else "")
        seen = _shape(reads, layout, width) if reads else None
        offers = _offers(layout, encoder, width, seen)
        arguments = fit_arguments(factory, own, offers, prefix="network_args.")
        made, arguments = _call(network, factory, arguments, layout.outputs)
        if seen is None:
            rows = earlier and "in_features" in arguments
            reads = "rows" if rows else _declared(made) or _by_data(made, layout)
            seen = _shape(reads, layout, width)
        target = layout.schema.target
        fields_out = network not in NETWORKS and target is not None and len(target.shape) > 1
        rows = seen == (width,)
        own_state = type(made).state_dict is not nn.Module.state_dict
        # The names of weights say whether there is this layer: earlier versions had other reasons.
        if not rows or (reads == "tensor" if earlier else fields_out or own_state):
            made = Shaped(seen, made)
        whole = nn.Sequential(embed, made) if embed else made
        if prove:
            _prove(network, whole, made, torch.zeros(DRY_ROWS, encoder.width), seen, layout)
    arguments |= vars(text) if encoder.texts and not ids else {}
    return Built(whole, arguments, factory, "ids" if ids else "rows" if rows else seen)


def _offers(
    layout: RawLayout, encoder: Encoder, width: int, seen: tuple[int, ...] | None
) -> dict[str, Any]:
    """Return the arguments that a factory may name."""
    offers: dict[str, Any] = {
        "in_features": width,
        "numeric_features": encoder.scaled,
        "out_features": layout.outputs,
        "num_classes": layout.outputs,
        "vocabulary": list(encoder.vocabulary),
        "texts": list(encoder.texts),
        "target_task": layout.schema.task or "",
    }
    features, target = layout.features, layout.schema.target
    if len(features) == 1 and features[0].kind == "tensor":
        shape = features[0].shape
        offers["input_shape"] = list(shape)
        offers["in_channels"] = shape[0] if len(shape) == 3 else 1
    if seen and len(seen) > 1:
        offers["in_channels"] = seen[0]
    if target and len(target.shape) > 1:
        offers["output_shape"] = list(target.shape)
        with_channels = len(target.shape) == (len(seen) if seen and len(seen) > 1 else 3)
        offers["out_channels"] = target.shape[0] if with_channels else 1
    return offers


def _shape(reads: str | Sequence[int], layout: RawLayout, width: int) -> tuple[int, ...]:
    """Return the shape of a row as the network gets it."""
    if not isinstance(reads, str):
        if math.prod(reads) != width:
            told = f"a network that reads {list(reads)!r:.100}, and {width} features"
            raise CorruptData(f"the model spec has {told}")
        return tuple(reads)
    shapes = [column.shape for column in layout.features]
    if reads not in get_args(Reads):
        raise _cannot_read(reads, nearest(str(reads), get_args(Reads)))
    if reads in ("rows", "ids"):
        return (width,)
    if reads == "tensor":
        if len(shapes) != 1 or not shapes[0]:
            raise _cannot_read(reads, "needs a single feature, a tensor; use rows")
        return shapes[0]
    dimensions = int(reads[0])
    grids = {shape[-dimensions:] for shape in shapes}
    if len(grids) > 1 or any(not 0 <= len(shape) - dimensions <= 1 for shape in shapes):
        listed = ", ".join(f"{c.name} {list(c.shape)}" for c in layout.features[:5])
        remedy = (
            f"needs features that are all tensors of one grid of {dimensions} dimensions, with or "
            f"without one for channels in front; these are {listed}"
        )
        raise _cannot_read(reads, remedy)
    channels = sum(shape[0] if len(shape) > dimensions else 1 for shape in shapes)
    return (channels, *grids.pop())


def _cannot_read(reads: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("settings.network_reads", reads, remedy)])


def _declared(of: object) -> str:
    """Return what a network or its factory says that it reads, "" where it says nothing."""
    reads = getattr(of, "reads", "")
    return reads if isinstance(reads, str) else ""


def _by_data(network: nn.Module, layout: RawLayout) -> str:
    """Return what a network reads that does not say it."""
    features = layout.features
    if len(features) != 1 or features[0].kind != "tensor":
        return "rows"
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            spatial = len(module.kernel_size)
            return f"{spatial}d" if len(features[0].shape) - spatial in (0, 1) else "tensor"
    return "tensor"


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
    name: str,
    network: nn.Module,
    made: nn.Module,
    features: Tensor,
    seen: tuple[int, ...],
    layout: RawLayout,
) -> None:
    """Send one batch through the network; this also gives lazy modules their sizes."""
    training = network.training
    network.eval()
    given = [len(features), *seen]
    said: list[object] = []
    inner = made.network if isinstance(made, Shaped) else made
    watch = inner.register_forward_hook(lambda module, given, made: said.append(made))
    try:
        with torch.no_grad():
            network(features)
    except (Exception, SystemExit) as error:
        if not said or isinstance(said[-1], Tensor):
            raise InvalidInput([Problem("network", name, _failed(given, error))]) from error
    finally:
        watch.remove()
        network.train(training)
    outputs, target = layout.outputs, layout.schema.target
    shapes: list[list[int]] = [[outputs]]
    if target and len(target.shape) > 1 and inner is not made:
        shapes += [list(target.shape), [1, *target.shape]]
    result = said[-1]
    got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
    if got not in [[len(features), *shape] for shape in shapes]:
        wanted = " or ".join(str([len(features), *shape]) for shape in shapes)
        remedy = (
            f"turned a batch of shape {given} into {got}, expected {wanted}; set its number of "
            f"outputs to {outputs} through network_args"
        )
        raise InvalidInput([Problem("network", name, remedy)])


def _failed(given: list[int], error: BaseException) -> str:
    return (
        f"failed on a batch of shape {given} with {type(error).__name__}: {error}; if that is not "
        f"what it reads, set network_reads to one of {', '.join(get_args(Reads))}"
    )
