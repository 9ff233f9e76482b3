"""Make a network smaller by whole units or channels, so that its file and its products shrink.

Single weights that are zero would shrink neither: a file holds them, and runtimes multiply by them.
Every hidden layer keeps the same share of its units. Those are kept whose outputs matter most to
the layer above: mean square of a unit times the squares of the weights that read it (Sun et al.
2024, "Wanda", summed over the layer above, as An et al. 2024, "FLAP", prune structures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.models.convolutional import Conv
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.tabular import Members, TabM

WIDTHS = {"mlp": "hidden", "tabm": "hidden", "conv": "channels"}
"""Networks that can be pruned, and the argument that holds the widths of their layers."""
_GRAIN = 1000
"""Shares of the units that are tried: thousandths."""

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | Members


@dataclass(frozen=True)
class _Chain:
    """The layers of a network from the bottom up, without what embeds categories and text."""

    modules: list[nn.Module]
    head: nn.Module | None
    """Reads the last of them; None where that is the answer itself."""

    @property
    def layers(self) -> list[tuple[int, Layer]]:
        """Those with weights, and their places."""
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, Members)
        return [(i, one) for i, one in enumerate(self.modules) if isinstance(one, kinds)]


def prune(model: Model, parameters: int, features: Tensor | None = None) -> Model:
    """Return a model of at most so many parameters that does nearly what a larger one does.

    Args:
        model: The larger one, as it has learned; it is only read.
        parameters: What the result may have.
        features: Rows [n, F] that tell what matters; None makes the widths alone.

    Raises:
        InvalidInput: The network has no widths to reduce, is that small, or cannot become so small.
    """
    factory, args = str(model.spec.network["factory"]), dict(model.spec.network["args"])
    field = "settings.prune"
    if factory not in WIDTHS or args.get("residual"):
        what = f"{factory}, residual" if factory in WIDTHS else factory
        remedy = f"only {', '.join(WIDTHS)} without skips can lose units; use such a teacher"
        raise InvalidInput([Problem(field, what, remedy)])
    if parameters >= model.spec.parameters:
        remedy = f"the teacher has {model.spec.parameters:,} parameters; give fewer"
        raise InvalidInput([Problem(field, parameters, remedy)])
    name = WIDTHS[factory]
    widths: list[int] = [int(width) for width in args[name]]

    def sized(share: int) -> Model:
        kept = [max(1, width * share // _GRAIN) for width in widths]
        spec = model.spec
        return Model.create(
            spec.schema,
            encoder=model.encoder,
            decoder=model.decoder,
            network=factory,
            network_args={**args, name: kept},
            network_reads=spec.network.get("reads"),
            prove=False,
        )

    low, high = 0, _GRAIN
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sized(middle).spec.parameters <= parameters else (low, middle)
    small = sized(low)
    if small.spec.parameters > parameters:
        remedy = f"{small.spec.parameters:,} are left where each layer has one unit; give more"
        raise InvalidInput([Problem(field, parameters, remedy)])
    if features is not None:
        _take_over(model.network, small.network, features)
    return small


@torch.no_grad()
def _take_over(large: nn.Module, small: nn.Module, features: Tensor) -> None:
    """Give a network the units of a larger one that matter most."""
    theirs, own = _chain(large), _chain(small)
    energy = _energies(large, theirs, features)
    sizes = [_outputs(layer) for _, layer in own.layers]
    state, shrunk = large.state_dict(), small.state_dict()
    for name, tensor in state.items():  # embeddings and bins are as they were
        if shrunk[name].shape == tensor.shape:
            shrunk[name].copy_(tensor)
    below: Tensor | None = None
    for number, (place, layer) in enumerate(theirs.layers):
        above = None
        if number < len(energy):
            above = energy[number].topk(sizes[number]).indices.sort().values
        _copy(layer, own.modules[place], below, above)
        for norm, kept in zip(theirs.modules[place + 1 :], own.modules[place + 1 :], strict=True):
            if isinstance(norm, Layer):
                break
            if above is not None:
                _copy_norm(norm, kept, above)
        below = above
    if isinstance(theirs.head, nn.Linear):
        _copy(theirs.head, own.head, below, None)
    elif isinstance(theirs.head, TabM) and isinstance(own.head, TabM) and below is not None:
        own.head.head.copy_(theirs.head.head[:, below])


def _chain(network: nn.Module) -> _Chain:
    found = next((one for one in network.modules() if isinstance(one, Conv | TabM)), None)
    if isinstance(found, Conv):
        return _Chain([*found.body], found.head)
    if isinstance(found, TabM):
        return _Chain([*found.body], found)
    plain = network
    while isinstance(plain, nn.Sequential) and not isinstance(plain[-1], nn.Linear):
        plain = plain[-1]  # behind what embeds
    assert isinstance(plain, nn.Sequential)
    return _Chain([*plain], None)


def _energies(network: nn.Module, chain: _Chain, features: Tensor) -> list[Tensor]:
    """Return what each unit of each hidden layer gives the layer above, [width] each."""
    seen: dict[int, Tensor] = {}

    def keep(place: int) -> Any:
        def hook(module: nn.Module, given: Any, made: Tensor) -> None:
            # Units are in the last place, channels in the second.
            axis = 1 if isinstance(chain.layers[0][1], nn.Conv1d | nn.Conv2d) else -1
            seen[place] = made.double().square().movedim(axis, -1).flatten(0, -2).mean(0)

        return hook

    layers = chain.layers
    # What is read above is what the module before that gives, or the last one.
    tops = [place - 1 for place, _ in layers[1:]]
    readers: list[Any] = [layer for _, layer in layers[1:]]
    if chain.head is not None:
        tops.append(len(chain.modules) - 1)
        readers.append(chain.head)
    training = network.training
    handles = [chain.modules[place].register_forward_hook(keep(place)) for place in tops]
    try:
        network.eval()(features)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    found: list[Tensor] = []
    for place, reader in zip(tops, readers, strict=True):
        if isinstance(reader, TabM):
            weights = reader.head.double().square().sum((0, 2))
        else:
            weight = reader.weight.double().square()
            weights = weight.transpose(0, 1).flatten(1).sum(1)
        found.append((seen[place] * weights).to(torch.float32))
    return found


def _outputs(layer: Layer) -> int:
    return layer.weight.shape[0]


def _copy(layer: Any, into: Any, below: Tensor | None, above: Tensor | None) -> None:
    """Copy a layer, of its inputs and outputs those that are kept."""

    def cut(tensor: Tensor, kept: Tensor | None, axis: int) -> Tensor:
        return tensor if kept is None else tensor.index_select(axis, kept)

    into.weight.copy_(cut(cut(layer.weight, above, 0), below, 1))
    if isinstance(layer, Members):
        into.below.copy_(cut(layer.below, below, 1))
        into.above.copy_(cut(layer.above, above, 1))
        into.bias.copy_(cut(layer.bias, above, 1))
    elif layer.bias is not None:
        into.bias.copy_(cut(layer.bias, above, 0))


def _copy_norm(norm: nn.Module, into: nn.Module, kept: Tensor) -> None:
    for name, tensor in norm.state_dict().items():
        mine = into.state_dict()[name]
        mine.copy_(tensor[kept] if tensor.dim() else tensor)
