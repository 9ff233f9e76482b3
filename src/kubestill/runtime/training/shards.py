"""State that is larger than a device: each process keeps a share of it, with the same bits.

It takes the memory of ZeRO-3 (Rajbhandari et al. 2020) and torch's `fully_shard`. A parameter
belongs to one process, as a whole: its norm, and an optimizer's kernel, round by where a number
lies in it. The owner has its value, the sum of its gradients and its optimizer state. The others
get the value when a block of the network runs, forward or backward, and drop it again. While it
runs, the values of the block after it are under way, and so are the gradients of the one before:
which block that is shows in the first micro-batch, and all processes expect the same.

Micro-batches go in turn to the processes, so that after each round the owner of a parameter has
the gradients of neighbouring ones, from the left to the right. It adds them along the tree of
`tree`, as one process that has all micro-batches does. So nobody holds more than a block's worth of
what is not its own, and the sum is that of the unsharded run, bit for bit.
"""

# Documented names of torch.distributed, which pyright does not count as exported; and what a module
# does when it is called.
# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false
from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from typing_extensions import override

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.base.memory import return_large_blocks
from kubestill.runtime.training.batches import Cut, Part
from kubestill.runtime.training.blocks import find_blocks, recomputing
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.kernels import backward, foreach_mul_, holders
from kubestill.runtime.training.losses import Loss
from kubestill.runtime.training.micro_batches import Streams, WrittenBuffers, aligned
from kubestill.runtime.training.optimizers import build_optimizer
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.steps import Batch, Step, copy_state, real, weighted
from kubestill.runtime.training.tree import Tree

FIELD = "settings.shard"
_GONE = re.compile("data is not allocated yet|out of bounds for storage of size 0")
"""What torch says of a tensor without memory."""


@dataclass(eq=False)
class Unit:
    """Parameters that are gathered together: those of a block, or what is in none."""

    members: list[int]
    """Numbers of parameters."""
    trained: list[int]
    """Those of them that learn."""
    since: int = 0
    """When it ran last, counted in this pass."""
    got: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """Gradients of this process that are not delivered yet."""
    delivered: bool = False


@dataclass(frozen=True)
class _Kept:
    """A tensor that autograd would keep, and that lies in the memory of a parameter."""

    number: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    conjugate: bool


class Shards:
    """The parameters of a network, of which each process keeps its own.

    Args:
        network: Loses the parameters of other processes.
        asked: Blocks that are gathered one at a time; see `find_blocks`.
        rank: This process.
        world: How many there are.
        timeout: Seconds after which an exchange fails because somebody does not take part.
    """

    def __init__(
        self,
        network: nn.Module,
        asked: str | Sequence[str],
        *,
        rank: int,
        world: int,
        timeout: float,
    ):
        return_large_blocks()
        self.rank, self.world = rank, world
        named = dict(network.named_parameters())
        self.names, self.parameters = [*named], [*named.values()]
        self.owners = share_out([_bytes(p) for p in self.parameters], world)
        self.group: Any = dist.new_group(timeout=timedelta(seconds=timeout))
        self.trace = 0
        """Stands for what was exchanged so far, in which order: it is the same everywhere."""
        self._here: set[int] = set()
        """Parameters whose values every process has now."""
        self._numbers: dict[int, int] = {}
        """Of those, by the address of their memory."""
        self._coming: dict[Unit, list[Any]] = {}
        """Broadcasts of units that are under way."""
        self._made: list[Unit] = []
        """Units that were gathered in this micro-batch, in their order."""
        self._plan: list[Unit] = []
        """Those of the first."""
        self._learns = self._goes_back = False
        self._deliver: Callable[[Unit], None] = lambda unit: None
        self._ran = 0
        self.units = self._divide(network, find_blocks(network, asked, field=FIELD))
        self._unit_of = {i: unit for unit in self.units for i in unit.members}
        self._spare = _Spare(2 * max(map(self._foreign_bytes, self.units)))
        self._blanks: dict[int, Tensor] = {}
        """What stands for the values of those that other processes own."""
        for i, parameter in enumerate(self.parameters):
            self._settle(i, parameter)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._take, i))

    @property
    def owned(self) -> list[int]:
        """Numbers of the parameters that this process owns."""
        return [i for i, owner in enumerate(self.owners) if owner == self.rank]

    @property
    def absent(self) -> set[int]:
        """Identities of the parameters that other processes own."""
        return {id(p) for i, p in enumerate(self.parameters) if self.owners[i] != self.rank}

    def describe(self) -> str:
        """Return one line for people."""
        sizes = [_bytes(p) for p in self.parameters]
        pairs = [*zip(sizes, self.owners, strict=True)]
        held = [sum(size for size, owner in pairs if owner == rank) for rank in range(self.world)]
        most = max(sum(sizes[i] for i in unit.members) for unit in self.units[:-1])
        always = sum(sizes[i] for i in self.units[-1].members)
        return (
            f"each process keeps {min(held) / 1e6:,.1f} to {max(held) / 1e6:,.1f} MB of "
            f"{sum(sizes) / 1e6:,.1f} MB of weights, and gathers up to {most / 1e6:,.1f} MB for a "
            f"block, two at a time, beside {always / 1e6:,.1f} MB for what is in none"
        )

    def _divide(self, network: nn.Module, blocks: Mapping[str, nn.Module]) -> list[Unit]:
        """Return a unit for each block, then one for the rest; each gathers itself when it runs."""
        number = {id(p): i for i, p in enumerate(self.parameters)}
        inside = [{number[id(p)] for p in module.parameters()} for module in blocks.values()]
        times = torch.bincount(torch.tensor([i for own in inside for i in own] or [0]))
        shared = {i for i, count in enumerate(times.tolist()) if count > 1}
        # What several blocks share is gathered with what is in none.
        own = [members - shared for members in inside]
        own.append({*number.values()}.difference(*own))
        units: list[Unit] = []
        for module, members in zip([*blocks.values(), network], own, strict=True):
            trained = [i for i in sorted(members) if self.parameters[i].requires_grad]
            unit = Unit(sorted(members), trained)
            units.append(unit)
            # Not by hooks, with which torch's own layers take another, slower way; and around those
            # that are there, some of which make weights of the parameters.
            module._call_impl = partial(self._run, unit, module._call_impl)
        return units

    def _foreign_bytes(self, unit: Unit) -> int:
        foreign = [self.parameters[i] for i in unit.members if self.owners[i] != self.rank]
        return sum(_bytes(parameter) for parameter in foreign)

    def _settle(self, i: int, parameter: nn.Parameter) -> None:
        """Let a parameter have memory of its own, or none."""
        if self.owners[i] != self.rank:
            blank = torch.empty_like(parameter.data)
            blank.untyped_storage().resize_(0)
            parameter.data = self._blanks[i] = blank
        elif parameter.untyped_storage().nbytes() != _bytes(parameter):
            parameter.data = parameter.data.clone()

    def _run(self, unit: Unit, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call a block, or the network, with its parameters."""
        self._ran += 1
        unit.since = self._ran
        self._gather(unit)
        try:
            return call(*given, **named)
        finally:
            if self._learns and self._expected() is unit:
                # The backward pass begins with what the forward pass ended with.
                self._go_on(unit)
            # What is in no block would be needed again at once; so is what runs a second time, for
            # the backward pass.
            elif not self._learns or not (self._goes_back or unit is self.units[-1]):
                self._release(unit.members)

    def _gather(self, unit: Unit, needed: int = -1) -> None:
        """Have all processes get the values of a unit, except what has its gradient already."""
        self._launch(unit, needed)
        if unit in self._coming:
            if self._learns:
                self._go_on(unit)
            self._arrive(unit)

    def _launch(self, unit: Unit, needed: int = -1) -> None:
        works: list[Any] = []
        for i in unit.members:
            if i in self._here or ((i in unit.got or unit.delivered) and i != needed):
                continue
            parameter, owner = self.parameters[i], self.owners[i]
            if owner != self.rank:
                blank, storage = self._blanks[i], self._spare.take(parameter)
                place = 0, blank.shape, blank.stride()
                parameter.data = blank.new_empty(0).set_(storage, *place)  # pyright: ignore
            self._here.add(i)
            self._numbers[parameter.untyped_storage().data_ptr()] = i
            self.note(i)
            works.append(dist.broadcast(_flat(parameter), owner, self.group, async_op=True))
        if works:
            self._coming.setdefault(unit, []).extend(works)

    def _arrive(self, unit: Unit) -> None:
        for work in self._coming.pop(unit, ()):
            work.wait()

    def _expected(self) -> Unit | None:
        """Return what the first micro-batch gathered next, while this one does as that did."""
        done = len(self._made)
        same = self._plan[:done] == self._made
        return self._plan[done] if same and done < len(self._plan) else None

    def _go_on(self, unit: Unit) -> None:
        """Note that a unit is needed now, and have the next one come meanwhile."""
        self._made.append(unit)
        if (following := self._expected()) is not None:
            self._launch(following)

    def _release(self, members: Iterable[int]) -> None:
        """Let go of what is not this process's own."""
        for i in self._here.intersection(members):
            self._arrive(self._unit_of[i])
            self._forget(i)

    def _forget(self, i: int) -> None:
        self._here.remove(i)
        parameter = self.parameters[i]
        storage = parameter.untyped_storage()
        del self._numbers[storage.data_ptr()]
        if self.owners[i] != self.rank:
            parameter.data = self._blanks[i]
            if self._unit_of[i] not in self._coming:
                self._spare.give(storage)

    def note(self, number: int) -> None:
        """Take an exchange into the trace."""
        self.trace = zlib.crc32(number.to_bytes(8, "little"), self.trace)

    def learn(self, deliver: Callable[[Unit], None]) -> AbstractContextManager[Any]:
        """Begin with a micro-batch, and return what stands around its forward pass.

        Args:
            deliver: Gets each unit once it has all gradients of this process, in the order in which
                the backward pass gives them. They are gone afterwards.
        """
        self._learns, self._deliver, self._ran = True, deliver, 0
        self._made.clear()
        if self._plan:
            self._launch(self._plan[0])
        return saved_tensors_hooks(self._pack, self._unpack)

    def go_back(self, outputs: Tensor, upstream: Tensor) -> None:
        """Run the backward pass."""
        self._goes_back = True
        backward(outputs, upstream, [p for p in self.parameters if p.requires_grad])
        # What had no part.
        for unit in reversed(self.units):
            if unit.trained and not unit.delivered:
                for i in unit.trained:
                    if i not in unit.got:
                        unit.got[i] = torch.zeros_like(self.parameters[i].data)
                self._hand_over(unit)
        for unit in [*self._coming]:
            self._arrive(unit)
        self._plan = self._plan or [*self._made]

    def rest(self) -> None:
        """Let go of everything, after a micro-batch or in the middle of one."""
        self._learns = self._goes_back = False
        for i in [*self._here]:
            self._forget(i)
        # Of what failed nobody waits for the rest: its memory is freed when it has come.
        self._coming.clear()
        for unit in self.units:
            unit.delivered = False
            unit.got.clear()

    def _take(self, i: int, parameter: Tensor) -> None:
        """Take a gradient. Whatever needs the parameter for it has run."""
        unit, gradient = self._unit_of[i], parameter.grad
        assert gradient is not None
        parameter.grad = None
        self._release([i])
        # The backward pass of what ran later is over.
        for other in self.units:
            if other.since > unit.since:
                self._release({*other.members}.difference(other.trained))
        unit.got[i] = gradient.contiguous().resolve_conj()
        if len(unit.got) == len(unit.trained):
            self._hand_over(unit)

    def _hand_over(self, unit: Unit) -> None:
        self._deliver(unit)
        unit.got.clear()
        unit.delivered = True

    def _pack(self, tensor: Tensor) -> tuple[Tensor, int] | _Kept:
        """Keep of a parameter which one it is: its memory goes."""
        i = None
        if tensor.layout is torch.strided:
            i = self._numbers.get(tensor.untyped_storage().data_ptr())
        if i is None:
            return tensor, tensor._version
        if tensor.dtype != self.parameters[i].dtype or tensor.is_neg():
            return tensor.clone(), 0
        place = tensor.shape, tensor.stride(), int(tensor.storage_offset())
        return _Kept(i, *place, conjugate=tensor.is_conj())

    def _unpack(self, kept: tuple[Tensor, int] | _Kept) -> Tensor:
        if isinstance(kept, tuple):
            tensor, version = kept
            # Autograd does not look where somebody else keeps its tensors.
            if tensor._version != version:
                raise RuntimeError(
                    f"a tensor {list(tensor.shape)} that the backward pass needs was modified by "
                    "an inplace operation"
                )
            return tensor
        i = kept.number
        if i not in self._here or self._unit_of[i] in self._coming:
            self._gather(self._unit_of[i], needed=i)
        found = self.parameters[i].data.as_strided(kept.shape, kept.stride, kept.offset)
        return found.conj() if kept.conjugate else found


class _Spare:
    """Memory of values that went, for those that come: fresh pages are cleared one by one.

    Args:
        most: Bytes that are kept.
    """

    def __init__(self, most: int):
        self._most, self._kept = most, list[torch.UntypedStorage]()

    def take(self, parameter: Tensor) -> torch.UntypedStorage:
        """Return memory for the values of a parameter."""
        size = _bytes(parameter)
        for place, storage in enumerate(self._kept):
            if storage.nbytes() == size:
                return self._kept.pop(place)
        return torch.UntypedStorage(size, device=parameter.device)

    def give(self, storage: torch.UntypedStorage) -> None:
        """Take memory back, the longest unused of which goes when there is too much."""
        if holders(storage) > 1:
            # Somebody has kept a view of it, and must not see the values of another.
            storage.resize_(0)
            return
        self._kept.append(storage)
        while sum(one.nbytes() for one in self._kept) > self._most:
            self._kept.pop(0)


class ShardedStep(Step):
    """Trains by the gradients of micro-batches; parameters and their state are shared out.

    Args:
        network: Trained in place.
        loss: What to minimise.
        settings: Optimizer and its arguments, gradient clipping, blocks.
        machine: Precision.
        shards: Who owns which parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        settings: TrainingSettings,
        machine: Machine,
        shards: Shards,
    ):
        self._network, self._loss, self._shards = network, loss, shards
        self._clip, self._leaves = settings.gradient_clip, settings.virtual_workers
        self._own = [i for i in shards.owned if shards.parameters[i].requires_grad]
        own = [shards.parameters[i] for i in self._own]
        trained = [p for p in shards.parameters if p.requires_grad]
        told = settings.optimizer, settings.optimizer_args
        self._optimizer = build_optimizer(*told, own, among=trained) if own else None
        self._streams = Streams(settings.seed, self._leaves, machine.device)
        self._buffers = WrittenBuffers(network)
        self._around: Callable[[], AbstractContextManager[None]] = nullcontext
        if settings.recompute:
            self._around = recomputing(network, settings.recompute)
        self._autocast: Callable[[], Any] = nullcontext
        if machine.precision == "bf16":
            self._autocast = partial(torch.autocast, machine.device.type, torch.bfloat16)
        self._trees = {
            unit: Tree([shards.parameters[i] for i in held], leaves=self._leaves)
            for unit in shards.units
            if (held := self._held(unit))
        }
        self._rest: Tree | None = None
        """Sums the loss, and what the network writes to its buffers."""
        self._complete: Callable[[], None] | None = None
        """Awaits the exchange that is under way, and adds what it brings."""

    def _held(self, unit: Unit) -> list[int]:
        """Return the parameters of a unit that learn, and that this process owns."""
        return [i for i in unit.trained if self._shards.owners[i] == self._shards.rank]

    @override
    def __call__(self, batch: Batch, learning_rate: float, part: Part = 1.0) -> Tensor:
        assert isinstance(part, Cut)
        if not part.shared:
            alone: dict[int, Tensor] = {}
            self._streams.seed(part.position, 0)
            loss = self._differentiate(tuple(map(aligned, batch)), 1.0, partial(self._keep, alone))
            self._update([alone[i] for i in self._own], learning_rate)
            return loss
        begun, first = self._buffers.begin(), 0
        cuts: list[tuple[int, float, Batch]] = []
        for leaf, rows, weight in part.leaves:
            own = tuple(aligned(tensor[first : first + rows]) for tensor in batch)
            cuts.append((leaf, weight, own))
            first += rows
        world = self._shards.world
        for start in range(0, self._leaves, world):
            if start:
                self._buffers.restore(begun)
            # Who has none left goes through the last one again: all take part in each exchange.
            leaf, weight, own = cuts[min(start // world, len(cuts) - 1)]
            there = range(start, min(start + world, self._leaves))
            self._streams.seed(part.position, leaf)
            loss = self._differentiate(own, weight, partial(self._exchange, there))
            self._add_rest(there, [loss, *self._buffers.weighted(begun, weight)])
        self._buffers.check()
        found: dict[int, Tensor] = {}
        for unit, tree in self._trees.items():
            found |= zip(self._held(unit), tree.total(), strict=True)
        self._update([found[i] for i in self._own], learning_rate)
        assert self._rest
        loss, *buffers = self._rest.total()
        self._buffers.take(buffers)
        return loss

    def _differentiate(
        self, batch: Batch, weight: float, deliver: Callable[[Unit], None]
    ) -> Tensor:
        """Return the loss times `weight`, and have its gradients delivered."""
        features, *targets = batch
        shards = self._shards
        try:
            with self._autocast(), self._around(), shards.learn(deliver):
                outputs = self._network(features)
            loss, upstream = weighted(weight, *self._loss(outputs.detach().float(), tuple(targets)))
            shards.go_back(outputs, upstream.to(outputs.dtype))
            self._complete_exchange()
        except RuntimeError as error:
            if not _GONE.search(str(error)):
                raise
            remedy = (
                "a parameter is used while the block that has it does not run; name a block that "
                "has all of its uses, or leave it out of the blocks"
            )
            raise InvalidInput([Problem(FIELD, "blocks", remedy)]) from error
        finally:
            self._complete = None
            shards.rest()
        return loss

    def _keep(self, found: dict[int, Tensor], unit: Unit) -> None:
        """Keep the gradients of a batch that every process has as a whole."""
        found |= {i: unit.got[i] for i in self._held(unit)}

    def _exchange(self, there: range, unit: Unit) -> None:
        """Bring the gradients of a unit, of as many micro-batches, to those who own them.

        They travel while the backward pass of the next unit runs.
        """
        self._complete_exchange()
        shards, sent = self._shards, list[dist.P2POp]()
        boxes: dict[int, list[Tensor]] = {}
        for i in unit.trained:
            given, owner = real(unit.got[i]), shards.owners[i]
            shards.note(~i & 0xFFFFFFFF)
            if owner != shards.rank:
                sent.append(dist.P2POp(dist.isend, given, owner, shards.group, tag=i))
                continue
            others = [rank for rank in range(shards.world) if rank != owner]
            boxes[i] = [given] * shards.world
            for rank in others:
                boxes[i][rank] = torch.empty_like(given)
                into = boxes[i][rank]
                sent.append(dist.P2POp(dist.irecv, into, rank, shards.group, tag=i))
        works = dist.batch_isend_irecv(sent) if sent else ()

        def complete() -> None:
            for work in works:
                work.wait()
            for rank, leaf in enumerate(there):
                if unit in self._trees:
                    got = (_like(box[rank], shards.parameters[i]) for i, box in boxes.items())
                    self._trees[unit].add(leaf, [*got])

        self._complete = complete

    def _complete_exchange(self) -> None:
        if self._complete is not None:
            self._complete()
        self._complete = None

    def _add_rest(self, there: range, summands: list[Tensor]) -> None:
        """Add what every process needs the sum of.

        Raises:
            InvalidInput: The processes did not exchange the same.
        """
        self._rest = self._rest or Tree(summands, leaves=self._leaves)
        shards = self._shards
        trace = torch.tensor([shards.trace], device=summands[0].device)
        everything = [trace, *summands]
        each: list[list[Tensor]] = [[] for _ in range(shards.world)]
        for tensor in everything:
            given = real(tensor.contiguous())
            boxes = [torch.empty_like(given) for _ in range(shards.world)]
            dist.all_gather(boxes, given, group=shards.group)
            for rank, box in enumerate(boxes):
                each[rank].append(_like(box, tensor))
        if len({int(trace) for trace, *_ in each}) > 1:
            remedy = "other blocks ran in other processes, or in another order; leave shard out"
            raise InvalidInput([Problem(FIELD, "blocks", remedy)])
        for rank, leaf in enumerate(there):
            self._rest.add(leaf, each[rank][1:])

    def _update(self, gradients: list[Tensor], learning_rate: float) -> None:
        shards = self._shards
        if self._clip:
            # As `get_total_norm` does: the norm of the norms, in the order of the parameters.
            norms = torch.zeros(len(shards.parameters), device=shards.parameters[0].device)
            for i, gradient in zip(self._own, gradients, strict=True):
                norms[i] = torch.linalg.vector_norm(gradient)
            dist.all_reduce(norms, group=shards.group)
            trained = [i for i, p in enumerate(shards.parameters) if p.requires_grad]
            norm = torch.linalg.vector_norm(norms[trained])
            if gradients:
                foreach_mul_(gradients, torch.clamp(self._clip / (norm + 1e-6), max=1.0))
        if self._optimizer is not None:
            self._optimizer.step(gradients, learning_rate)

    @override
    def state(self) -> dict[str, Tensor]:
        if self._optimizer is None:
            return {}
        return {
            f"{self._shards.names[i]}/{slot}": tensor
            for i, own in zip(self._own, self._optimizer.state(), strict=True)
            for slot, tensor in own.items()
        }

    @override
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        if self._optimizer is not None:
            self._optimizer.materialise()
            copy_state(self.state(), saved)


def share_out(sizes: Sequence[int], world: int) -> list[int]:
    """Return the owner of each parameter: the largest first, to whom has least so far."""
    held, owners = [0] * world, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owners[i] = min(range(world), key=lambda rank: (held[rank], rank))
        held[owners[i]] += sizes[i]
    return owners


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flat(parameter: Tensor) -> Tensor:
    """Return the numbers of a parameter as they lie in memory, real, [N]."""
    return real(parameter.data.as_strided((parameter.numel(),), (1,), 0))


def _like(tensor: Tensor, wanted: Tensor) -> Tensor:
    return torch.view_as_complex(tensor) if wanted.is_complex() else tensor
