"""Read a file of torch.export (`.pt2`) without torch's loader: nothing is unpickled or evaluated.

The file is a zip. `models/*.json` is the program, by torch's schema of serialised programs
(`torch/_export/serde/schema.py`); `data/weights` and `data/constants` hold tensors as raw bytes,
each directory with a JSON file that says what the bytes are. torch's loader also unpickles the
sample inputs, and hands expressions of sizes to sympy, which evaluates them. Neither is needed to
compute: sizes follow from the rows.

`read_program` returns what the file says, checked as far as that goes without computing;
`pt2_run` computes.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kubestill.errors import CorruptData, InvalidInput, Problem
from kubestill.runtime.base import LARGEST
from kubestill.runtime.base.values import Flag, JsonObject, Value, Whole, parse_json, read_as
from kubestill.runtime.models.foreign.packing import opened
from kubestill.runtime.models.foreign.runtime import MOST

MAJOR = 8
"""Version of torch's schema that is read. Within one, later versions only add."""
MOST_CALLS = 100_000
"""Operations in a program."""
AGAIN = "export the same program with torch.onnx.export(..., dynamo=True)"
"""What to do about a program that cannot be read here."""
_WHAT = "file of torch.export"
_SPEC = "extra/model.json"
_DTYPES: dict[int, torch.dtype] = {
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
_STRIDED = 7
_SYMBOL = re.compile(r"(?:Symbol\('(\w{1,60})'(?:, \w+=\w+)*\)|(\w{1,60}))")
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


@dataclass(frozen=True)
class Given:
    """A tensor that the caller gives."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    """Of a row: all axes but the first."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a file says."""

    held: Mapping[str, Tensor]
    """Parameters, buffers and constants by their names in the program."""
    scalars: Mapping[str, Operand]
    """Arguments that were no tensors when it was exported."""
    given: tuple[Given, ...]
    calls: tuple[Call, ...]
    outputs: Mapping[str, str]
    """What it returns: names for a person, and in the program."""
    least: int
    most: int | None
    """Rows that it takes at a time."""
    parameters: int
    """Learned numbers."""
    spec: bytes | None
    """`model.json` of a model that this package exported."""


class _Expression(Value):
    expr_str: str


class _Size(Value):
    as_int: Whole | None = None
    as_expr: _Expression | None = None


class _Meta(Value):
    dtype: Whole
    sizes: tuple[_Size, ...]
    strides: tuple[_Size, ...]
    storage_offset: _Size
    layout: Whole


class _Payload(Value):
    path_name: str
    use_pickle: Flag
    is_param: Flag = False
    tensor_meta: _Meta | None = None


class _Payloads(Value):
    config: dict[str, _Payload]


class _Operand(Value):
    name: str
    arg: JsonObject


class _Node(Value):
    target: str
    inputs: tuple[_Operand, ...]
    outputs: tuple[JsonObject, ...]


class _Inner(Value):
    inputs: tuple[JsonObject, ...]
    outputs: tuple[JsonObject, ...]
    nodes: tuple[_Node, ...]


class _Graph(Value):
    nodes: tuple[_Node, ...]
    tensor_values: dict[str, _Meta]


class _Signature(Value):
    input_specs: tuple[dict[str, JsonObject], ...]
    output_specs: tuple[dict[str, JsonObject], ...]


class _ModuleCallSignature(Value):
    out_spec: str = ""


class _ModuleCall(Value):
    fqn: str
    signature: _ModuleCallSignature | None = None


class _GraphModule(Value):
    graph: _Graph
    signature: _Signature
    module_call_graph: tuple[_ModuleCall, ...] = ()


class _Range(Value):
    min_val: int | None = None
    max_val: int | None = None


class _Version(Value):
    major: Whole
    minor: Whole


class _Exported(Value):
    graph_module: _GraphModule
    range_constraints: dict[str, _Range]
    schema_version: _Version
    torch_version: str = "of before 2.5"


def refuse(what: str, remedy: str) -> InvalidInput:
    """Return why a program cannot be brought in although the file is whole."""
    return InvalidInput([Problem("model", what, remedy)])


def read_program(content: bytes) -> Program:
    """Return what a file of torch.export says.

    Raises:
        CorruptData: It is damaged, or contradicts itself.
        InvalidInput: It is of another version, or holds what only a pickle can say.
    """
    with opened(content, _WHAT) as archive:
        return _Reader(archive).program()


class _Reader:
    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._root = next(
            (n.removesuffix("archive_format") for n in archive.namelist() if n.endswith("format")),
            "",
        )
        self._members = {
            one.filename.removeprefix(self._root): one
            for one in archive.infolist()
            if one.filename.startswith(self._root)
        }
        self._stored: dict[str, Tensor] = {}
        self._learned: set[str] = set()

    def program(self) -> Program:
        names = [one for one in self._members if re.fullmatch(r"models/[^/]+\.json", one)]
        if len(names) != 1:
            compiled = any(one.startswith("data/aotinductor/") for one in self._members)
            remedy = "holds compiled code, which runs as it is; " * (compiled and not names)
            remedy += "save one program with torch.export.save(program, path)"
            raise refuse(f"{len(names)} programs", remedy)
        form = self._json(names[0])
        _check_version(form)
        told = read_as(_Exported, form, source=names[0], what="program")
        model = names[0].removeprefix("models/").removesuffix(".json")
        graph, signature = told.graph_module.graph, told.graph_module.signature
        held, scalars, given, ranges = self._inputs(model, told)
        scope: dict[str, Operand] = {}
        for one in (*held, *scalars, *(one.name for one in given)):
            _define(one, Name(one), scope)
        if len(scope) < len(signature.input_specs):
            raise CorruptData(f"{names[0]} gives two inputs one name")
        calls: list[Call] = []
        _read_calls(graph.nodes, scope, calls)
        outputs = _outputs(signature, told.graph_module.module_call_graph, scope)
        spec = self._bytes(_SPEC, LARGEST) if _SPEC in self._members else None
        least = max([1, *(one.min_val or 0 for one in ranges)])
        mosts = [one.max_val for one in ranges if one.max_val is not None]
        if mosts and min(mosts) < least:
            raise CorruptData(f"{names[0]} takes from {least} to {min(mosts)} rows")
        return Program(
            held=held,
            scalars=scalars,
            given=given,
            calls=tuple(calls),
            outputs=outputs,
            least=least,
            most=min(mosts) if mosts else None,
            parameters=sum(self._stored[one].numel() for one in self._learned),
            spec=spec,
        )

    def _bytes(self, name: str, most: int) -> bytes:
        member = self._members.get(name)
        if member is None or member.file_size > most:
            found = "is missing" if member is None else f"is larger than {most} bytes"
            raise CorruptData(f"{name} {found} in the {_WHAT}")
        return self._archive.read(member)

    def _json(self, name: str) -> JsonObject:
        return parse_json(self._bytes(name, LARGEST), source=name, what="part of a program")

    def _payloads(self, folder: str, model: str) -> dict[str, _Payload]:
        legacy = f"data/{folder}/{model}.pt"
        if legacy in self._members:
            remedy = (
                "is how an older torch saves them, as a pickle; load the program there and save it "
                f"again with torch 2.13 (see torch.export.save), or {AGAIN}"
            )
            raise refuse(legacy, remedy)
        name = f"data/{folder}/{model}_{folder}_config.json"
        return read_as(_Payloads, self._json(name), source=name, what="list of tensors").config

    def _tensor(self, folder: str, name: str, payload: _Payload | None) -> Tensor:
        """Return one tensor, a view of the bytes that it shares with others."""
        if payload is None:
            raise CorruptData(f"data/{folder} lacks {name!r:.80}")
        meta = payload.tensor_meta
        if payload.use_pickle or meta is None:
            remedy = (
                "is stored as a pickle, as torch does with subclasses of Tensor; replace it by a "
                f"plain tensor before the export (such as weight.dequantize()), or {AGAIN}"
            )
            raise refuse(f"{name!r:.80}", remedy)
        dtype = _dtype(meta.dtype, name)
        if meta.layout != _STRIDED:
            raise refuse(f"{name!r:.80}", f"is sparse; make it dense before the export, or {AGAIN}")
        place = f"data/{folder}/{payload.path_name}"
        stored = self._storage(place, dtype)
        sizes, strides = _whole(meta.sizes, name), _whole(meta.strides, name)
        (offset,) = _whole((meta.storage_offset,), name)
        if len(sizes) != len(strides):
            raise CorruptData(f"{name!r:.80} has {len(sizes)} sizes and {len(strides)} strides")
        extents = [(size - 1) * stride for size, stride in zip(sizes, strides, strict=True)]
        empty = 0 in sizes
        if not empty and offset + sum(extents) >= stored.numel():
            raise CorruptData(f"{name!r:.80} claims {list(sizes)} of {dtype}, more than it holds")
        if math.prod(sizes) * dtype.itemsize > MOST:
            raise CorruptData(f"{name!r:.80} claims {list(sizes)}, more than {MOST:,} bytes")
        if payload.is_param:
            self._learned.add(place)
        return (
            torch.empty(sizes, dtype=dtype) if empty else stored.as_strided(sizes, strides, offset)
        )

    def _storage(self, place: str, dtype: torch.dtype) -> Tensor:
        found = self._stored.get(place)
        if found is None:
            member = self._members.get(place)
            if member is None:
                raise CorruptData(f"{place[:200]} is missing in the {_WHAT}")
            content = self._archive.read(member)  # not longer than it says, and of its checksum
            if len(content) != member.file_size:
                raise CorruptData(f"{place[:200]} ends too early")
            whole = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
            found = self._stored[place] = _viewed(whole, dtype, place)
        return found if found.dtype == dtype else _viewed(found.view(torch.uint8), dtype, place)

    def _inputs(
        self, model: str, told: _Exported
    ) -> tuple[dict[str, Tensor], dict[str, Operand], tuple[Given, ...], list[_Range]]:
        weights, constants = (self._payloads(one, model) for one in ("weights", "constants"))
        held: dict[str, Tensor] = {}
        scalars: dict[str, Operand] = {}
        given: list[Given] = []
        ranges: list[_Range] = []
        for spec in told.graph_module.signature.input_specs:
            kind, form = _one(spec, "input")
            if kind == "user_input":
                one, symbol = _read_given(form, told.graph_module.graph)
                given.append(one)
                if symbol in told.range_constraints:
                    ranges.append(told.range_constraints[symbol])
            elif kind == "constant_input":
                value = _operand(form.get("value"))
                if isinstance(value, Name | list):
                    raise CorruptData("the program has a constant input that is none")
                scalars[_text(form, "name")] = value
            elif kind in ("parameter", "buffer", "tensor_constant"):
                lasting = kind == "parameter" or form.get("persistent") is True
                folder, listed = ("weights", weights) if lasting else ("constants", constants)
                name = _text(form, f"{kind}_name")
                held[_tensor_name(form.get("arg"))] = self._tensor(folder, name, listed.get(name))
            else:
                remedy = (
                    f"is an object of torch's own, stored as a pickle; leave it out, or {AGAIN}"
                )
                raise refuse(f"input of the kind {kind!r:.40}", remedy)
        return held, scalars, tuple(given), ranges


def _check_version(form: JsonObject) -> None:
    told = read_as(
        _Version, form.get("schema_version"), source="the program", what="schema version"
    )
    if told.major != MAJOR:
        wrote = str(form.get("torch_version"))[:40]
        remedy = (
            f"version {MAJOR} of torch's schema of programs is read here, and torch {wrote} wrote "
            f"this; save it with torch 2.13, or {AGAIN}"
        )
        raise refuse(f"schema version {told.major}.{told.minor}", remedy)


def _viewed(whole: Tensor, dtype: torch.dtype, place: str) -> Tensor:
    if len(whole) % dtype.itemsize:
        raise CorruptData(f"{place[:200]} holds {len(whole)} bytes, which are no {dtype}")
    return whole.view(dtype)


def _whole(sizes: Sequence[_Size], name: str) -> tuple[int, ...]:
    found = tuple(one.as_int for one in sizes if one.as_int is not None)
    if len(found) < len(sizes):
        raise CorruptData(f"{name!r:.80} has a size that is no number")
    return found


def _dtype(code: object, name: str) -> torch.dtype:
    if not isinstance(code, int) or code not in _DTYPES:
        remedy = f"is of a type that is not read here; convert it before the export, or {AGAIN}"
        raise refuse(f"{name!r:.80} of type {code!r:.20}", remedy)
    return _DTYPES[code]


def _read_given(form: JsonObject, graph: _Graph) -> tuple[Given, str]:
    """Return an input of the caller's, and the symbol of its rows."""
    kind, value = _one(form.get("arg"), "input")
    if kind != "as_tensor":
        remedy = "is no tensor; give it as a constant when exporting (functools.partial, or args)"
        raise refuse(f"input of the kind {kind.removeprefix('as_')!r:.40}", remedy)
    name = _tensor_name(value)
    meta = graph.tensor_values.get(name)
    if meta is None:
        raise CorruptData(f"the program does not describe its input {name!r:.80}")
    first, *rest = meta.sizes or (_Size(),)
    symbol = _SYMBOL.fullmatch(first.as_expr.expr_str) if first.as_expr else None
    fixed = [one.as_int for one in meta.sizes]
    if symbol is None:
        rows = fixed[0] if fixed else "no"
        remedy = (
            f"takes batches of exactly {rows} rows; export it with a dynamic first axis, "
            "torch.export.export(..., dynamic_shapes=({0: Dim('rows')},))"
        )
        if first.as_expr:
            remedy = "the first axis is an expression; let it be a Dim of its own, the rows"
        raise refuse(f"input {name!r:.80}", remedy)
    if None in fixed[1:]:
        remedy = "has another dynamic axis than the first; export it with the size of the columns"
        raise refuse(f"input {name!r:.80}", remedy)
    given = Given(name, _dtype(meta.dtype, name), _whole(rest, name))
    return given, symbol[1] or symbol[2]


def _read_calls(
    nodes: Sequence[_Node], scope: dict[str, Operand], found: list[Call], within: str = ""
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
                _define(name, Name(within + name), scope)
            if isinstance(one, tuple):
                outputs.append(tuple(within + name for name in one))
            else:
                outputs.append(None if one is None else within + one)
        found.append(Call(node.target, operands, tuple(outputs)))


def _read_wrapped(node: _Node, scope: dict[str, Operand], found: list[Call]) -> None:
    """Add the operations of a program that only says how gradients or autocasts are set."""
    place = _WRAPPERS[node.target]
    kind, form = _one(node.inputs[place].arg, "program") if place < len(node.inputs) else ("", {})
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
        _define(one if isinstance(one, str) else "", value, inside)
    _read_calls(inner.nodes, inside, found, f"{len(found)}:")
    outputs = [_output(one) for one in node.outputs]
    flat = [name for one in outputs for name in (one if isinstance(one, tuple) else (one,))]
    if len(flat) != len(inner.outputs):
        raise CorruptData(
            f"{node.target} returns {len(inner.outputs)} values for {len(flat)} names"
        )
    for name, one in zip(flat, inner.outputs, strict=True):
        if name is not None:
            _define(name, _known(one, inside, node.target), scope)


def _define(name: str, value: Operand, scope: dict[str, Operand]) -> None:
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

    return resolve(_operand(form, target))


def names_in(operand: Operand) -> list[str]:
    """Return the names of the values that an operand needs."""
    if isinstance(operand, Name):
        return [operand.name]
    if isinstance(operand, list):
        return [name for one in operand for name in names_in(one)]
    return []


def _output(form: JsonObject) -> str | None | tuple[str, ...]:
    kind, value = _one(form, "output")
    if kind == "as_none":
        return None
    if kind == "as_tensors":
        return tuple(_tensor_name(one) for one in _list(value))
    found = _operand(form)
    if not isinstance(found, Name):
        raise CorruptData("an operation of the program has an output without a name")
    return found.name


def _outputs(
    signature: _Signature, modules: Sequence[_ModuleCall], scope: Mapping[str, Operand]
) -> dict[str, str]:
    found: list[str] = []
    for spec in signature.output_specs:
        kind, form = _one(spec, "output")
        if kind in ("buffer_mutation", "parameter_mutation"):
            remedy = (
                "the program changes its own weights or buffers as it answers; call model.eval() "
                f"before the export, or {AGAIN}"
            )
            raise refuse(f"{_text(form, kind.replace('mutation', 'name'))!r:.80}", remedy)
        if kind == "user_input_mutation":
            continue
        if kind != "user_output":
            remedy = f"is not what a model answers; {AGAIN}"
            raise refuse(f"output of the kind {kind!r:.40}", remedy)
        form = form.get("arg")
        if isinstance(form, dict) and "as_tensor" in form:
            found.append(_tensor_name(form["as_tensor"]))
        else:
            found.append("")  # a number or nothing beside the answers: kept for its place
    if missing := [one for one in found if one and not isinstance(scope.get(one), Name)]:
        raise CorruptData(f"the program returns {missing[0]!r:.80}, which nothing gave")
    told = next((one.signature for one in modules if one.fqn == "" and one.signature), None)
    names = _keys(told.out_spec if told else "", len(found)) or found
    pairs = {name: scope[one].name for name, one in zip(names, found, strict=True) if one}
    if not pairs:
        raise refuse("no output", "returns no tensor; let forward return the scores")
    return pairs


def _keys(spec: str, count: int) -> list[str]:
    """Return the names of what `forward` returns where it is a dict or a record; else none."""
    try:
        form = parse_json(f'{{"spec": {spec}}}', source="out_spec", what="structure")["spec"][1]
        inner = form["children_spec"]
        keys = parse_json(f'{{"keys": {form["context"]}}}', source="out_spec", what="structure")[
            "keys"
        ]
        plain = all(one["children_spec"] == [] for one in inner) and len(inner) == count
        named = isinstance(keys, list) and all(isinstance(one, str) for one in keys)
        return list(keys) if plain and named and len(set(keys)) == count else []
    except (CorruptData, KeyError, IndexError, TypeError):
        return []


def _operand(form: object, target: str = "an input") -> Operand:
    """Return a value as torch's schema writes it: an object with one key, its kind.

    Raises:
        CorruptData: It is of another form.
        InvalidInput: It is of a kind that is not read here.
    """
    kind, value = _one(form, "value")
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


def _one(form: object, what: str) -> tuple[str, Any]:
    """Return the one entry of an object."""
    if not isinstance(form, dict) or len(form) != 1:
        raise CorruptData(f"the program has an {what} that is of no kind, or of several")
    return next(iter(form.items()))


def _text(form: JsonObject, name: str) -> str:
    if not isinstance(found := form.get(name), str):
        raise CorruptData(f"the program lacks a {name!r:.40} that is text")
    return found


def _tensor_name(form: Any) -> str:
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
        name, found = _one(value, "value")
        return Name(_exactly(str)(found)) if name == "as_name" else plain(found)

    return read


def _named(value: Any) -> Name:
    return Name(_tensor_name(value))


def _optional(value: Any) -> Name | None:
    kind, found = _one(value, "value")
    return None if kind == "as_none" else _named(found)


def _complex(value: Any) -> complex:
    return complex(_exactly(float)(value["real"]), _exactly(float)(value["imag"]))


def _strided(value: Any) -> torch.layout:
    if value != _STRIDED:
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
    "as_scalar_type": lambda value: _DTYPES[value],
    "as_memory_format": lambda value: _MEMORY_FORMATS[value],
    "as_layout": _strided,
    "as_device": lambda value: DEVICE,
    "as_optional_tensor": _optional,
    "as_optional_tensors": _listed(_optional),
    "as_complex": _complex,
    "as_int_lists": _listed(_listed(_exactly(int))),
    "as_float_lists": _listed(_listed(_exactly(float))),
}
