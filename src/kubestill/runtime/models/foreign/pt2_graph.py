"""The graph in a file of torch.export: its operations in their order, and what their operands are.

It is JSON by torch's schema of serialised programs (`torch/_export/serde/schema.py`). A value is an
object with one key, its kind; what is of no kind that is listed here is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base.values import JsonObject, Value, read_as

MOST_CALLS = 100_000
"""Operations in a program."""
AGAIN = "export the same program with torch.onnx.export(..., dynamo=True)"
"""What to do about a program that cannot be read here."""
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
STRIDED = 7
_NAME = re.compile(r"\w{1,200}")
_AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
_ENABLED = 2
_WRAPPERS = {"torch.ops.higher_order.wrap_with_set_grad_enabled": 1, _AUTOCAST: 4}
"""What holds a program as one of its operands, at this place, and computes that one as it is."""
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@dataclass(frozen=True)
class Name:
    """A value that an earlier operation, an input or a weight holds."""

    name: str


DEVICE = object()
"""Stands for the device on which the program runs, whichever it was exported on."""
Operand: TypeAlias = Any
"""A `Name`, `DEVICE`, a number, text, None, a constant of torch, or a list of these."""
Outputs: TypeAlias = tuple["str | None | tuple[str, ...]", ...]
"""Names of what an operation returns: of a list of tensors a tuple, None for nothing."""


@dataclass(frozen=True)
class Call:
    """One operation."""

    target: str
    operands: tuple[tuple[str, Operand], ...]
    """By the names of the operator's arguments."""
    outputs: Outputs


class _Operand(Value):
    name: str
    arg: JsonObject


class Node(Value):
    """One operation as the file has it."""

    target: str
    inputs: tuple[_Operand, ...]
    outputs: tuple[JsonObject, ...]


class _Inner(Value):
    inputs: tuple[JsonObject, ...]
    outputs: tuple[JsonObject, ...]
    nodes: tuple[Node, ...]


def refuse(what: str, remedy: str) -> InvalidInput:
    """Return why a program cannot be brought in although the file is whole."""
    return InvalidInput([Problem("model", what, remedy)])


def read_calls(
    nodes: Sequence[Node], scope: dict[str, Operand], found: list[Call], within: str = ""
) -> None:
    """Add operations in their order, those of a program inside of the program among them.

    Args:
        nodes: As the file has them.
        scope: What each name means; gains the names of their outputs.
        found: Gains the operations.
        within: Begins names that are given inside of the program.
    """
    for node in nodes:
        if node.target in _WRAPPERS:
            _read_wrapped(node, scope, found)
            continue
        if len(found) >= MOST_CALLS:
            raise refuse(f"more than {MOST_CALLS:,} operations", "is too large to be read here")
        operands = tuple((one.name, _known(one.arg, scope, node.target)) for one in node.inputs)
        if len({name for name, _ in operands}) < len(operands):
            raise CorruptData(f"{node.target[:80]} gets an argument twice")
        outputs: list[str | None | tuple[str, ...]] = []
        for one in map(_output, node.outputs):
            for name in [one] if isinstance(one, str) else one or ():
                define(name, Name(within + name), scope)
            if isinstance(one, tuple):
                outputs.append(tuple(within + name for name in one))
            else:
                outputs.append(None if one is None else within + one)
        found.append(Call(node.target, operands, tuple(outputs)))


def _read_wrapped(node: Node, scope: dict[str, Operand], found: list[Call]) -> None:
    """Add the operations of a program that only says how gradients or autocasts are set."""
    place = _WRAPPERS[node.target]
    kind, form = one_of(node.inputs[place].arg, "program") if place < len(node.inputs) else ("", {})
    if kind != "as_graph":
        raise CorruptData(f"{node.target} has no program")
    if place == _WRAPPERS[_AUTOCAST] and node.inputs[_ENABLED].arg != {"as_bool": False}:
        raise refuse(
            node.target, f"computes in half precision; leave torch.autocast out, or {AGAIN}"
        )
    inner = read_as(_Inner, form.get("graph"), source=node.target, what="program")
    given = [_known(one.arg, scope, node.target) for one in node.inputs[place + 1 :]]
    if len(given) != len(inner.inputs):
        raise CorruptData(f"{node.target} gives its program {len(given)} operands")
    inside: dict[str, Operand] = {}
    for one, value in zip(map(_output, inner.inputs), given, strict=True):
        define(one if isinstance(one, str) else "", value, inside)
    read_calls(inner.nodes, inside, found, f"{len(found)}:")
    outputs = [_output(one) for one in node.outputs]
    flat = [name for one in outputs for name in (one if isinstance(one, tuple) else (one,))]
    if len(flat) != len(inner.outputs):
        raise CorruptData(
            f"{node.target} returns {len(inner.outputs)} values for {len(flat)} names"
        )
    for name, one in zip(flat, inner.outputs, strict=True):
        if name is not None:
            define(name, _known(one, inside, node.target), scope)


def define(name: str, value: Operand, scope: dict[str, Operand]) -> None:
    """Give a value a name."""
    if not _NAME.fullmatch(name):
        raise CorruptData(f"the program has the name {name!r:.80}, which is none of torch's")
    if name in scope:
        raise CorruptData(f"the program gives {name!r:.80}, which is there already")
    scope[name] = value


def _known(form: object, scope: Mapping[str, Operand], target: str) -> Operand:
    """Return a value as an operation gets it, what it names being there by now."""

    def resolve(operand: Operand) -> Operand:
        if isinstance(operand, list):
            return [resolve(one) for one in operand]
        if not isinstance(operand, Name):
            return operand
        if operand.name not in scope:
            raise CorruptData(
                f"{target[:80]} needs {operand.name!r:.80}, which nothing gave so far"
            )
        return scope[operand.name]

    return resolve(read_operand(form, target))


def names_in(operand: Operand) -> list[str]:
    """Return the names of the values that an operand needs."""
    if isinstance(operand, Name):
        return [operand.name]
    if isinstance(operand, list):
        return [name for one in operand for name in names_in(one)]
    return []


def _output(form: JsonObject) -> str | None | tuple[str, ...]:
    kind, value = one_of(form, "output")
    if kind == "as_none":
        return None
    if kind == "as_tensors":
        return tuple(tensor_name(one) for one in _list(value))
    found = read_operand(form)
    if not isinstance(found, Name):
        raise CorruptData("an operation of the program has an output without a name")
    return found.name


def read_operand(form: object, target: str = "an input") -> Operand:
    """Return a value as torch's schema writes it: an object with one key, its kind.

    Raises:
        CorruptData: It is of another form.
        InvalidInput: It is of a kind that is not read here.
    """
    kind, value = one_of(form, "value")
    read = _KINDS.get(kind)
    if read is None:
        remedy = (
            f"{target[:80]} takes it, which is not read here; try "
            f"program.run_decompositions() before saving, or {AGAIN}"
        )
        raise refuse(f"value of the kind {kind.removeprefix('as_')!r:.40}", remedy)
    try:
        return read(value)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CorruptData(f"{target[:80]} has a {kind[:40]} that is none: {error!r:.80}") from error


def one_of(form: object, what: str) -> tuple[str, Any]:
    """Return the one entry of an object."""
    if not isinstance(form, dict) or len(form) != 1:
        raise CorruptData(f"the program has an {what} that is of no kind, or of several")
    return next(iter(form.items()))


def tensor_name(form: Any) -> str:
    """Return the name of a tensor."""
    if not isinstance(form, dict) or not isinstance(form.get("name"), str):
        raise CorruptData("the program has a tensor without a name")
    return form["name"]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("it is no list")
    return value


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if kind is float and isinstance(value, str):
            return _FLOATS[value]
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise TypeError(f"{value!r:.40} is no {kind.__name__}")
        if kind is int and abs(value) >= 1 << 63:
            raise ValueError(f"{value} takes more than 64 bits")
        return value

    return read


def _listed(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda value: [read(one) for one in _list(value)]


def _symbolic(kind: type) -> Callable[[Any], Any]:
    plain = _exactly(kind)

    def read(value: Any) -> Any:
        name, found = one_of(value, "value")
        return Name(_exactly(str)(found)) if name == "as_name" else plain(found)

    return read


def _named(value: Any) -> Name:
    return Name(tensor_name(value))


def _optional(value: Any) -> Name | None:
    kind, found = one_of(value, "value")
    return None if kind == "as_none" else _named(found)


def _complex(value: Any) -> complex:
    return complex(_exactly(float)(value["real"]), _exactly(float)(value["imag"]))


def _strided(value: Any) -> torch.layout:
    if value != STRIDED:
        raise ValueError("it is sparse")
    return torch.strided


_KINDS: dict[str, Callable[[Any], Operand]] = {
    "as_none": lambda value: None,
    "as_tensor": _named,
    "as_tensors": _listed(_named),
    "as_int": _exactly(int),
    "as_ints": _listed(_exactly(int)),
    "as_float": _exactly(float),
    "as_floats": _listed(_exactly(float)),
    "as_string": _exactly(str),
    "as_strings": _listed(_exactly(str)),
    "as_bool": _exactly(bool),
    "as_bools": _listed(_exactly(bool)),
    "as_sym_int": _symbolic(int),
    "as_sym_ints": _listed(_symbolic(int)),
    "as_sym_float": _symbolic(float),
    "as_sym_floats": _listed(_symbolic(float)),
    "as_sym_bool": _symbolic(bool),
    "as_sym_bools": _listed(_symbolic(bool)),
    "as_scalar_type": lambda value: DTYPES[value],
    "as_memory_format": lambda value: _MEMORY_FORMATS[value],
    "as_layout": _strided,
    "as_device": lambda value: DEVICE,
    "as_optional_tensor": _optional,
    "as_optional_tensors": _listed(_optional),
    "as_complex": _complex,
    "as_int_lists": _listed(_listed(_exactly(int))),
    "as_float_lists": _listed(_listed(_exactly(float))),
}
