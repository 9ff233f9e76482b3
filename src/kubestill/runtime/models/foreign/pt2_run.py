"""Run a program of torch.export, operation by operation.

Before a program gets rows it runs on tensors without values (torch's device `meta`), which takes no
memory. That shows that its operands fit, what its outputs are, whether it writes to its weights,
and how many bytes a row takes, so that batches are as large as memory allows.
"""

# Storages have no public identity, nor tensors a public count of what was written to them.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kubestill.errors import CorruptData, KubestillError
from kubestill.runtime.models.foreign.pt2_graph import (
    AGAIN,
    DEVICE,
    Call,
    Name,
    Operand,
    Outputs,
    names_in,
    refuse,
)
from kubestill.runtime.models.foreign.pt2_operators import (
    SIZES,
    check_operands,
    find_operator,
    guard,
    is_written,
)
from kubestill.runtime.models.foreign.pt2_read import Program
from kubestill.runtime.models.foreign.runtime import MOST

BATCH_BYTES = 256 << 20
"""What the tensors of a batch should take together."""
_MOST_PARTS = 10_000
"""Tensors into which one is cut."""

_META = torch.device("meta")
_REFUSALS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
)
"""What torch says of operands that do not fit."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A call, ready to be made."""

    target: str
    function: Callable[..., Any]
    positional: tuple[Operand, ...]
    named: tuple[tuple[str, Operand], ...] = ()
    outputs: Outputs
    done: tuple[str, ...]
    """Names that no later call needs."""
    lists: bool = False
    """Whether it returns a list of tensors."""
    writes: bool = False
    """Whether it writes to its first operand."""

    def call(self, values: Mapping[str, Any], device: torch.device) -> Any:
        positional = [_resolve(one, values, device) for one in self.positional]
        if not self.named:
            return self.function(*positional)
        named = {name: _resolve(one, values, device) for name, one in self.named}
        return self.function(*positional, **named)

    def store(self, made: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Keep what the call returned under the names of its outputs, and return it so."""
        if self.lists or len(self.outputs) == 1:
            made = (made,)
        found: dict[str, Any] = {}
        for name, one in zip(self.outputs, made or (), strict=True):
            if isinstance(name, tuple):
                found.update(zip(name, one, strict=True))
            elif name is not None:
                found[name] = one
        values.update(found)
        return found

    def target_of(self, values: Mapping[str, Any]) -> int:
        """Return which bytes it writes to."""
        target = _resolve(self.positional[0], values, _META)
        if not isinstance(target, Tensor):
            raise TypeError("it writes to what is no tensor")
        return target.untyped_storage()._cdata

    def check_parts(self, values: Mapping[str, Any]) -> None:
        """Refuse to cut a tensor into more parts than a program has names for.

        Raises:
            ValueError: It would.
        """
        if not self.lists:
            return
        whole, how, axis, *_ = *(_resolve(one, values, _META) for one in self.positional), 0, 0
        parts = how if isinstance(how, int) else 0
        if "unbind" in self.target:
            parts = whole.shape[how]
        elif "split" in self.target and "tensor_split" not in self.target and parts > 0:
            parts = -(-whole.shape[axis] // parts)
        if parts > _MOST_PARTS:
            raise ValueError(f"it makes {parts:,} tensors of one")


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a program does with so many rows."""

    outputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    """Sizes and type of each."""
    peak: int
    """Bytes of the tensors that are there at a time, besides weights."""
    writes_inputs: bool


class Runner:
    """A program on a device."""

    def __init__(self, program: Program, device: torch.device):
        self._program = program
        self._device = device
        self._steps = _bind(program)
        self._held = {name: one.to(device) for name, one in program.held.items()}
        self._tried: set[int] = set()

    def run(self, given: Mapping[str, Tensor], output: str) -> Tensor:
        """Return one output for rows.

        Args:
            given: A tensor for each input, on the device; see `Rehearsal.writes_inputs`.
            output: Its name in the program.

        Raises:
            CorruptData, InvalidInput: As of `rehearse`, which comes before so many rows.
        """
        for rows in {len(one) for one in given.values()} - self._tried:
            self.rehearse(rows)  # sizes that follow from the rows may be any
        values: dict[str, Any] = {**self._held, **self._program.scalars, **given}
        with torch.inference_mode():
            for step in self._steps:
                step.store(step.call(values, self._device), values)
                for name in step.done:
                    del values[name]
        return values[output]

    def rehearse(self, rows: int) -> Rehearsal:
        """Return what becomes of so many rows, without computing it.

        Raises:
            CorruptData: An operator does not take its operands.
            InvalidInput: The program writes to its weights, or takes too much memory.
        """
        fixed = {
            name: torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=_META)
            for name, one in self._program.held.items()
        }
        given = {
            one.name: torch.empty((rows, *one.sizes), dtype=one.dtype, device=_META)
            for one in self._program.given
        }
        values: dict[str, Any] = {**fixed, **self._program.scalars, **given}
        memory = _Memory()
        memory.keep(given)
        # By what holds their bytes: a view need not tell what it is a view of that it was written.
        weights = {one.untyped_storage()._cdata: name for name, one in fixed.items()}
        rows_of = {one.untyped_storage()._cdata for one in given.values()}
        written: set[int] = set()
        with torch.no_grad():
            for step in self._steps:
                try:
                    step.check_parts(values)
                    if step.writes:
                        written.add(step.target_of(values))
                    with memory:
                        made = step.store(step.call(values, _META), values)
                except KubestillError:
                    raise
                except _REFUSALS as error:
                    said = f"{type(error).__name__}: {error}"
                    raise CorruptData(
                        f"{step.target} does not take what the program gives it: {said:.300}"
                    ) from error
                memory.keep(made)
                for name in step.done:
                    memory.drop(name, values.pop(name))
        if changed := [name for one, name in weights.items() if one in written]:
            remedy = (
                "is overwritten as the program answers, so that later answers differ; call "
                f"model.eval() before the export, or {AGAIN}"
            )
            raise refuse(f"{changed[0]!r:.80}", remedy)
        self._tried.add(rows)
        return Rehearsal(
            outputs={
                name: (tuple(values[one].shape), values[one].dtype)
                for name, one in self._program.outputs.items()
                if isinstance(values[one], Tensor)
            },
            peak=memory.peak,
            writes_inputs=bool(written & rows_of),
        )


class _Memory(TorchDispatchMode):
    """Counts the bytes of tensors while they run without values, those inside of operators too."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, set[str]] = {}
        self._size = self._within = self.peak = 0

    def __enter__(self) -> Self:
        self._within = 0
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if any(one.name == "device" for one in func._schema.arguments):
            named["device"] = _META  # else an operator's own tensors would take memory
        made = func(*args, **named)
        for one in made if isinstance(made, list | tuple) else (made,):
            if not isinstance(one, Tensor):
                continue
            if one.numel() * one.itemsize > MOST:
                size = f"{list(one.shape)} of {one.dtype}"
                raise refuse(f"{func} of {size}", f"takes more than {MOST >> 30} GiB of memory")
            self._within += one.untyped_storage().nbytes()
            self.peak = max(self.peak, self._size + self._within)
        return made

    def keep(self, made: Mapping[str, Any]) -> None:
        for name, one in made.items():
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in self._live:
                    self._size += storage.nbytes()
                self._live.setdefault(storage._cdata, set()).add(name)
        self.peak = max(self.peak, self._size)
        if self._size > 2 * MOST:
            what = f"{self._size >> 30} GiB of tensors at a time"
            raise refuse(what, f"takes more than {MOST >> 29} GiB of memory")

    def drop(self, name: str, one: Any) -> None:
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            names = self._live.get(storage._cdata, set())
            names.discard(name)
            if not names and self._live.pop(storage._cdata, None) is not None:
                self._size -= storage.nbytes()


def _bind(program: Program) -> tuple[_Step, ...]:
    """Look up what each call means; all that is not on the list together.

    Raises:
        InvalidInput: There is something else.
        CorruptData: An operand is missing or unknown.
    """
    kept = set(program.outputs.values())
    last: dict[str, int] = {}
    for place, call in enumerate(program.calls):
        for _, operand in call.operands:
            last.update(dict.fromkeys(names_in(operand), place))
        for one in call.outputs:  # of which some are never used
            last.update(
                dict.fromkeys(one if isinstance(one, tuple) else [one] if one else [], place)
            )
    done: dict[int, list[str]] = {}
    for name, place in last.items():
        if name not in kept and name not in program.held:
            done.setdefault(place, []).append(name)
    steps: list[_Step] = []
    unknown: dict[str, None] = {}
    for place, call in enumerate(program.calls):
        function = SIZES.get(call.target) or find_operator(call.target)
        if function is None:
            unknown[call.target] = None
        elif not unknown:
            steps.append(_bind_call(call, function, tuple(done.get(place, ()))))
    if unknown:
        shown = ", ".join(f"{one:.80}" for one in list(unknown)[:5])
        shown += f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        remedy = (
            "only operators of torch that compute, and nothing else, are run here; try "
            f"program.run_decompositions() before saving, or {AGAIN}"
        )
        raise refuse(shown, remedy)
    return tuple(steps)


def _bind_call(call: Call, function: Callable[..., Any], done: tuple[str, ...]) -> _Step:
    operands = dict(call.operands)
    if call.target in SIZES:
        return _Step(
            target=call.target,
            function=function,
            positional=tuple(operands.values()),
            outputs=call.outputs,
            done=done,
        )
    schema: Any = function._schema  # pyright: ignore[reportFunctionMemberAccess]
    check_operands(call, schema, operands)
    names = [one.name for one in schema.arguments]
    if "device" in names:
        operands["device"] = DEVICE  # else it makes its tensor on the processor
    operands.pop("pin_memory", None)
    positional: list[Operand] = []
    for one in schema.arguments:
        if one.kwarg_only or one.name not in operands:
            break
        positional.append(operands.pop(one.name))
    returns = schema.returns
    return _Step(
        target=call.target,
        function=guard(call.target, function, names),
        positional=tuple(positional),
        named=tuple(operands.items()),
        outputs=call.outputs,
        done=done,
        lists=len(returns) == 1 and isinstance(returns[0].type, torch.ListType),
        writes=is_written(schema.arguments[0]) and call.target != "torch.ops.aten.detach_.default",
    )


def _resolve(operand: Operand, values: Mapping[str, Any], device: torch.device) -> Any:
    kind = type(operand)
    if kind is Name:
        return values[operand.name]
    if kind is list:
        return [_resolve(one, values, device) for one in operand]
    return device if operand is DEVICE else operand
