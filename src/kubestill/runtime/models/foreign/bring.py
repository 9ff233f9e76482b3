"""From a file, a folder or an import path to a model of this package."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, NotFound, Problem, Problems, nearest
from kubestill.runtime.base.settings import validate
from kubestill.runtime.base.trust import TEACHERS, registered
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.datasets.columns import label_strings
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.models.export import copy_model, load_model
from kubestill.runtime.models.foreign.boosters import CatBoost
from kubestill.runtime.models.foreign.endpoint import (
    PROBED,
    Endpoint,
    EndpointOptions,
    names_endpoint,
)
from kubestill.runtime.models.foreign.huggingface import CONFIG, read_folder
from kubestill.runtime.models.foreign.match import Match, Options, match
from kubestill.runtime.models.foreign.model import ForeignPredictor, ask, open_runtime, to_logits
from kubestill.runtime.models.foreign.packing import pack
from kubestill.runtime.models.foreign.python import find_teacher
from kubestill.runtime.models.foreign.recognise import recognise
from kubestill.runtime.models.foreign.runtime import MOST, Block, Runtime, are_decimals
from kubestill.runtime.models.foreign.several import RULES, SEVERAL, Several, SeveralOptions
from kubestill.runtime.models.foreign.spec import ForeignSpec, Format, Input
from kubestill.runtime.models.identity import (
    FOREIGN,
    SPEC_FILE,
    model_digest,
    weights_digest,
    weights_file,
)
from kubestill.runtime.models.model import FORMAT
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.resolve import source_digest
from kubestill.runtime.stores import open_store, split_uri
from kubestill.runtime.stores.files import write_file

_PROBED = 64
"""Rows with which CatBoost is asked what it knows."""
_SENTINELS = (-99.0, -999.0, -9999.0, -99999.0, -999999.0, 999.0, 9999.0, 99999.0, 999999.0)
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A foreign model, matched with a dataset and tried on its rows."""

    predictor: ForeignPredictor
    content: bytes
    """Of its file."""
    notes: tuple[str, ...]
    tried: int
    """Rows that it answered."""

    def write(self, folder: str) -> str:
        """Write the model, `model.json` last, and return its digest."""
        spec = self.predictor.foreign.foreign
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        form = spec.to_json()
        write_file(os.path.join(folder, weights_file(form)), self.content)
        text = (json.dumps(form, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        write_file(os.path.join(folder, SPEC_FILE), text)
        self.predictor.digest = model_digest(text)
        return self.predictor.digest


def bring(
    source: str, dataset: Dataset, options: Options, *, trust: Iterable[str] = ()
) -> Brought | None:
    """Load a model, match it with a dataset by name, and try it on a few rows.

    Args:
        source: A file or folder, local, gs:// or s3://, the import path of a teacher, or the
            address of an endpoint.
        dataset: Rows that say what the columns and classes mean.
        options: What its file does not say.
        trust: Packages that the caller vouches for, besides the one that `source` names.

    Returns:
        None where the folder holds a model of this package, which needs nothing of all that.

    Raises:
        InvalidInput: There is no model, it is of a format that is never loaded, or it does not fit
            the dataset; all problems of one kind together.
        CorruptData: It is damaged.
        StoreError: The store did not answer.
    """
    notes: list[str] = []
    factory, content = "", b""
    members: list[tuple[Predictor, dict[str, bytes]]] = []
    if source == SEVERAL:
        kind = "several"
        members = _bring_members(dataset, options.several, trust)
        runtime = Several([one for one, _ in members], options.several)
    elif options.format == "endpoint" or names_endpoint(source):
        kind = "endpoint"
        told = label_strings(pa.array(options.classes)).to_pylist() or dataset.schema.classes
        runtime = Endpoint.find(source, options.endpoint, told, options.output_name)
        factory = runtime.url
    else:
        found = _find_file(source, options)
        if found is None:
            return None
        kind, factory, content = found
        runtime = open_runtime(
            kind,
            content,
            factory=factory,
            args=_arguments(options),
            output=options.output_name,
            vouched=True,
            trust=trust,
        )
    _check_meant(kind, options)
    certain = kind in ("lightgbm", "xgboost", "catboost", "skops")
    matched = match(runtime.declared, dataset.schema, options, certain=certain)
    layout = RawLayout(matched.schema)
    rows = _some_rows(dataset, layout, runtime.declared.tried)
    if kind in ("skops", "onnx", "pt2"):  # which may compare in float64
        inputs = tuple(_with_decimals(one, rows, layout) for one in matched.inputs)
        matched = replace(matched, inputs=inputs)
    outputs = ask(runtime, Block(rows, layout, matched.inputs), kind)
    # They may compute anything; what int8 files of the dynamic kind do with a batch is known.
    if kind == "pt2" or (kind == "onnx" and b"DynamicQuantizeLinear" not in content):
        for part in (slice(len(rows) // 2 + 1), slice(len(rows) // 2, None)):
            by_itself = ask(runtime, Block(rows[part], layout, matched.inputs), kind)
            _check_by_row(outputs, outputs[part], by_itself)
    if isinstance(runtime, CatBoost):
        inputs, told = runtime.find_spellings(Block(rows[:_PROBED], layout, matched.inputs))
        matched = replace(matched, inputs=inputs)
        outputs = ask(runtime, Block(rows, layout, inputs), kind)
        notes += told
    if kind == "xgboost" and options.missing is None:
        notes += _note_sentinels(rows, layout)
    if isinstance(runtime, Endpoint):
        content = runtime.seal(Block(rows[:PROBED], layout, matched.inputs))
    if isinstance(runtime, Several):
        notes.append(runtime.study(Block(rows, layout, matched.inputs)))
        content = pack({RULES: runtime.rules()} | _files(files for _, files in members))
    spec = _describe(kind, content, runtime, matched, outputs, factory, options)
    answers = to_logits(outputs, spec)
    notes += matched.notes
    if len(answers) > 1 and np.all(answers == answers[0]):
        notes.append(f"it answers all {len(answers)} rows tried alike")
    predictor = ForeignPredictor(spec, runtime)
    return Brought(predictor=predictor, content=content, notes=tuple(notes), tried=len(rows))


def _bring_members(
    dataset: Dataset, options: SeveralOptions, trust: Iterable[str]
) -> list[tuple[Predictor, dict[str, bytes]]]:
    """Return each of several teachers with the files of its model.

    Raises:
        InvalidInput: There are fewer than two, or one cannot be brought in.
    """
    problems = Problems()
    if len(options.teachers) < 2:
        remedy = "name at least two, each with its `source` and the options that it needs"
        problems.add("several.teachers", options.teachers, remedy)
    found: list[tuple[Predictor, dict[str, bytes]]] = []
    for place, told in enumerate(options.teachers):
        field = f"several.teachers[{place}]."
        mine = Problems()
        with mine.collect(), tempfile.TemporaryDirectory(prefix="kubestill-member-") as folder:
            source = str(told.get("source") or "")
            rest = {name: value for name, value in told.items() if name != "source"}
            if source in ("", SEVERAL):
                raise InvalidInput([Problem("source", source, "name one model")])
            brought = bring(source, dataset, validate(Options, rest), trust=trust)
            if brought is None:
                copy_model(source, folder)
                found.append((load_model(folder, trust=trust), _read_files(folder)))
            else:
                brought.write(folder)
                found.append((brought.predictor, _read_files(folder)))
        for one in mine:
            problems.add(field + one.field, one.value, one.remedy)
    if not problems:
        wanted = (dataset.schema.task, dataset.schema.classes)
        for place, (one, _) in enumerate(found):
            has = (one.spec.task, one.spec.schema.classes)
            if has != wanted:
                remedy = f"does {has[0]} over {list(has[1])}, and the dataset is {wanted[0]}"
                problems.add(f"several.teachers[{place}]", one.spec.network["factory"], remedy)
    problems.raise_if_any()
    return found


def _read_files(folder: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = file.read()
    return found


def _files(members: Iterable[dict[str, bytes]]) -> dict[str, bytes]:
    return {
        f"{place}/{name}": one for place, files in enumerate(members) for name, one in files.items()
    }


def _check_meant(kind: Format, options: Options) -> None:
    """Refuse options of another kind of teacher.

    Raises:
        InvalidInput: There are some.
    """
    problems = Problems()
    if kind != "endpoint" and options.endpoint != EndpointOptions():
        remedy = f"is for an address that is asked, and this is {kind}; leave it out"
        problems.add("endpoint", options.endpoint, remedy)
    if kind != "several" and options.several != SeveralOptions():
        remedy = f"goes with the source {SEVERAL!r}, and this is {kind}; leave it out"
        problems.add("several", options.several, remedy)
    if kind != "xgboost" and options.missing is not None:
        remedy = f"is for XGBoost, and this is {kind}; leave it out"
        problems.add("missing", options.missing, remedy)
    for field in ("args", "weights"):
        told = getattr(options, field)
        if kind != "python" and told:
            remedy = f"is for a class of your own, and this is {kind}; leave it out"
            problems.add(field, told, remedy)
    problems.raise_if_any()


def _arguments(options: Options) -> dict[str, Any]:
    """Return what a runtime is told besides its file."""
    told = {} if options.missing is None else {"missing": options.missing}
    return options.args | told


def _note_sentinels(rows: NDArray[np.float32], layout: RawLayout) -> list[str]:
    """Note numbers that look like missing values, which no file of XGBoost's says."""
    found: dict[float, list[str]] = {}
    for column in layout.features:
        if column.kind == "numeric":
            numbers = rows[:, layout.slices[column.name].start].astype(np.float64) + column.offset
            for mark in _SENTINELS:
                at_an_end = mark in (
                    np.nanmin(numbers, initial=mark),
                    np.nanmax(numbers, initial=mark),
                )
                if at_an_end and (numbers == mark).sum() > len(numbers) // 100:
                    found.setdefault(mark, []).append(column.name)
    return [
        f"{', '.join(map(repr, names[:5]))} hold {mark:g}, which is read as a number: if the model "
        f"was fitted with missing={mark:g}, say so (`missing`), since its file does not"
        for mark, names in found.items()
    ]


def _find_file(source: str, options: Options) -> tuple[Format, str, bytes] | None:
    """Return format, import path and content; None for a model of this package."""
    if options.format == "python" or _names_teacher(source):
        return "python", source, _read(options.weights) if options.weights else b""
    content = _read_model(source)
    return None if content is None else (recognise(content, source, options.format), "", content)


def _names_teacher(source: str) -> bool:
    if os.path.exists(source):
        return False
    return bool(_IMPORT_PATH.fullmatch(source)) or source in registered(TEACHERS)


def _read(uri: str) -> bytes:
    try:
        folder, name = split_uri(uri)
        return open_store(folder).get(name, most=MOST)
    except NotFound as error:
        raise InvalidInput([Problem("weights", uri, f"there is no such file ({error})")]) from error


def _read_model(source: str) -> bytes | None:
    """Return the content of a model's file; None where a model of this package lies there."""
    try:
        folder, name = split_uri(source)
        return open_store(folder).get(name, most=MOST)
    except NotFound:
        pass
    store = open_store(source)
    names = [entry.key for entry in store.list()]
    if SPEC_FILE in names:
        content = store.get(SPEC_FILE, most=MOST)
        try:
            form = parse_json(content, source=f"{source}/{SPEC_FILE}", what="model")
        except CorruptData:
            form = {}
        if form.get("format") in (FORMAT, FOREIGN):
            return None
    if CONFIG in names:
        return read_folder(store, names, source)
    if len(names) == 1:
        return store.get(names[0], most=MOST)
    if not names:
        remedy = (
            "there is no such file or folder; give a model's file or folder, local, gs:// or "
            "s3://, or the import path of a teacher, 'package.module:Name'"
        )
        raise InvalidInput([Problem("source", source, remedy)])
    remedy = f"this folder holds {len(names)} files; name one: {nearest(source, names)}"
    raise InvalidInput([Problem("source", source, remedy)])


def _some_rows(dataset: Dataset, layout: RawLayout, rows: int) -> NDArray[np.float32]:
    block = next(dataset.iter_blocks(), None)
    if block is None:
        remedy = "has no rows; the model is tried on a few before it is taken"
        raise InvalidInput([Problem("dataset", dataset.root, remedy)])
    return decode_features(block.slice(0, rows), layout)


def _with_decimals(one: Input, rows: NDArray[np.float32], layout: RawLayout) -> Input:
    """Return how a column is read, once it is known whether its numbers are decimals."""
    column = layout.schema.column(one.name)
    if column.kind != "numeric" or column.offset:
        return one
    return replace(one, decimal=are_decimals(rows[:, layout.slices[one.name].start]))


def _check_by_row(
    outputs: NDArray[np.floating], among: NDArray[np.floating], alone: NDArray[np.floating]
) -> None:
    """Compare what some of the rows are answered among all of them and by themselves.

    Raises:
        InvalidInput: They differ by more than rounding.
    """
    off = float(np.abs(among - alone).max(initial=0.0))
    if off > 1e-3 * float(np.abs(outputs).max(initial=0.0)):
        remedy = (
            f"answers of a row change by up to {off:.3g} with the rows beside it; a model has to "
            "answer each row by itself (no statistics over a batch: call model.eval() first)"
        )
        raise InvalidInput([Problem("model", f"{len(outputs)} rows tried", remedy)])


def _describe(
    kind: Format,
    content: bytes,
    runtime: Runtime,
    matched: Match,
    outputs: NDArray[np.floating],
    factory: str,
    options: Options,
) -> ForeignSpec:
    source = None
    if kind == "python":
        source = source_digest(find_teacher(factory, vouched=True))  # pyright: ignore
    classes = len(matched.order)
    allowed = (1, 2) if matched.schema.task == "binary" else (classes,)
    if outputs.shape[1] not in allowed:
        what = "values" if matched.schema.task == "regression" else "classes"
        remedy = f"the dataset has {classes} {what}, so it should put out {allowed[-1]} numbers"
        raise InvalidInput([Problem("model", f"{outputs.shape[1]} numbers for a row", remedy)])
    return ForeignSpec(
        schema=matched.schema,
        network={"factory": factory or kind, "args": _arguments(options), "source": source},
        encoder={},
        decoder={},
        parameters=runtime.declared.parameters,
        digest=weights_digest(content),
        kind=kind,
        inputs=matched.inputs,
        order=matched.order,
        width=outputs.shape[1],
        answers=matched.answers,
        output=runtime.declared.output,
        bytes=len(content),
    )
