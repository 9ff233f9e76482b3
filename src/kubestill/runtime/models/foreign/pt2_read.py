"""Read a file of torch.export (`.pt2`) without torch's loader: nothing is unpickled or evaluated.

The file is a zip. `models/*.json` is the program; `data/weights` and `data/constants` hold tensors
as raw bytes, each directory with a JSON file that says what the bytes are. torch's loader also
unpickles the sample inputs, and hands expressions of sizes to sympy, which evaluates them. Neither
is needed to compute: sizes follow from the rows.

`read_program` returns what the file says, checked as far as that goes without computing;
`pt2_graph` reads the operations, `pt2_operators` has those that may be called, and `pt2_run`
computes.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kubestill.errors import CorruptData
from kubestill.runtime.base import LARGEST
from kubestill.runtime.base.values import Flag, JsonObject, Value, Whole, parse_json, read_as
from kubestill.runtime.models.foreign.packing import opened
from kubestill.runtime.models.foreign.pt2_graph import (
    AGAIN,
    DTYPES,
    STRIDED,
    Call,
    Name,
    Node,
    Operand,
    define,
    one_of,
    read_calls,
    read_operand,
    refuse,
    tensor_name,
)
from kubestill.runtime.models.foreign.runtime import MOST

MAJOR = 8
"""Version of torch's schema that is read. Within one, later versions only add."""
_WHAT = "file of torch.export"
_SPEC = "extra/model.json"
_SYMBOL = re.compile(r"(?:Symbol\('(\w{1,60})'(?:, \w+=\w+)*\)|(\w{1,60}))")


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


class _Graph(Value):
    nodes: tuple[Node, ...]
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
            define(one, Name(one), scope)
        if len(scope) < len(signature.input_specs):
            raise CorruptData(f"{names[0]} gives two inputs one name")
        calls: list[Call] = []
        read_calls(graph.nodes, scope, calls)
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
        if meta.layout != STRIDED:
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
            kind, form = one_of(spec, "input")
            if kind == "user_input":
                one, symbol = _read_given(form, told.graph_module.graph)
                given.append(one)
                if symbol in told.range_constraints:
                    ranges.append(told.range_constraints[symbol])
            elif kind == "constant_input":
                value = read_operand(form.get("value"))
                if isinstance(value, Name | list):
                    raise CorruptData("the program has a constant input that is none")
                scalars[_text(form, "name")] = value
            elif kind in ("parameter", "buffer", "tensor_constant"):
                lasting = kind == "parameter" or form.get("persistent") is True
                folder, listed = ("weights", weights) if lasting else ("constants", constants)
                name = _text(form, f"{kind}_name")
                held[tensor_name(form.get("arg"))] = self._tensor(folder, name, listed.get(name))
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
    if not isinstance(code, int) or code not in DTYPES:
        remedy = f"is of a type that is not read here; convert it before the export, or {AGAIN}"
        raise refuse(f"{name!r:.80} of type {code!r:.20}", remedy)
    return DTYPES[code]


def _read_given(form: JsonObject, graph: _Graph) -> tuple[Given, str]:
    """Return an input of the caller's, and the symbol of its rows."""
    kind, value = one_of(form.get("arg"), "input")
    if kind != "as_tensor":
        remedy = "is no tensor; give it as a constant when exporting (functools.partial, or args)"
        raise refuse(f"input of the kind {kind.removeprefix('as_')!r:.40}", remedy)
    name = tensor_name(value)
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


def _outputs(
    signature: _Signature, modules: Sequence[_ModuleCall], scope: Mapping[str, Operand]
) -> dict[str, str]:
    found: list[str] = []
    for spec in signature.output_specs:
        kind, form = one_of(spec, "output")
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
            found.append(tensor_name(form["as_tensor"]))
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


def _text(form: JsonObject, name: str) -> str:
    if not isinstance(found := form.get(name), str):
        raise CorruptData(f"the program lacks a {name!r:.40} that is text")
    return found
