"""Task of the component `quantise-model`: int8 ONNX, and what it costs beside float32."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from kubestill.errors import InvalidInput, Problem, Problems, counted, nearest
from kubestill.runtime.base.artifacts import Artifact, MetricsArtifact, check_kind
from kubestill.runtime.datasets.decode import check_columns, decode_features
from kubestill.runtime.datasets.manifest import Dataset, open_input
from kubestill.runtime.evaluation.frontier import find_frontier
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.fake_quantise import is_quantised, without_ranges
from kubestill.runtime.models.foreign.bring import Brought, bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.foreign.model import ForeignModel, ForeignPredictor
from kubestill.runtime.models.foreign.onnx_file import OnnxFile
from kubestill.runtime.models.foreign.runtime import Block
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.quantised import (
    SCHEMES,
    compact,
    convolves,
    left_in_float,
    quantisable,
    quantise_onnx,
)
from kubestill.runtime.models.serve import check_serving, export_onnx
from kubestill.runtime.reports.numbers import count, size
from kubestill.runtime.steps.frontier import check_alike, check_choice, write_frontier
from kubestill.runtime.stores.files import write_file

BATCH = 256
"""Rows that are calibrated with at a time."""
_FLOAT, _TRAINED = "float32", "int8 trained"
_ASKED = ("auto", *SCHEMES, "trained")


def quantise_model(
    *,
    model: Artifact,
    calibration: Artifact,
    dataset: Artifact,
    quantised: Artifact,
    metrics: MetricsArtifact,
    report: Artifact,
    summary: Artifact,
    record: Artifact,
    scheme: str = "auto",
    metric: str = "",
    tolerance: float = 0.005,
    confidence: float = 0.95,
    calibration_rows: int = 2048,
) -> tuple[str, str]:
    """Quantise a model both ways, compare with float32, and write the one that is chosen.

    The component documents the parameters.

    Returns:
        verdict: `within`, `unproven` or `outside`.
        reason: Why this one, in sentences.

    Raises:
        InvalidInput: Everything that is wrong, before anything is quantised; or ONNX Runtime
            cannot quantise the network.
        CorruptData: Model or rows are damaged.
    """
    problems = Problems()
    with problems.collect():
        check_serving("onnx", "quantise-model")
    if scheme not in _ASKED:
        problems.add("scheme", scheme, nearest(scheme, _ASKED))
    if calibration_rows < 1:
        problems.add("calibration_rows", calibration_rows, "must be 1 or more")
    check_choice(tolerance, confidence, problems)
    learned = open_input(calibration, "calibration", problems)
    rows = open_input(dataset, "dataset", problems)
    given = None
    with problems.collect("model", model.uri):
        check_kind(model, "model")
        given = load_model(model.path)
    trained = bool(given and type(given.model) is Model and is_quantised(given.model.network))
    if given and scheme == "trained" and not trained:
        remedy = "the model has not learned in 8 bits; train it with settings.quantise_aware"
        problems.add("scheme", scheme, f"{remedy}, or use 'auto'")
    if given and learned:
        with problems.collect():
            check_columns(learned, given.layout, ["raw"])
    if learned and rows and learned.fingerprint == rows.fingerprint:
        remedy = "are the rows that the ranges are set by; connect others, such as validation rows"
        problems.add("dataset", rows.root, remedy)
    check_alike([given] if given else [], rows, metric, problems)
    problems.raise_if_any()
    assert given
    assert learned
    assert rows
    whole = _as_onnx(without_ranges(given.model) if trained else given.model, model.path)
    held = quantisable(whole)
    if not held:
        remedy = "has no matrix product or convolution with weights, so nothing can become int8"
        raise InvalidInput([Problem("model", model.uri, remedy)])
    plain = _bring(whole, learned)
    slow = convolves(whole)
    made = {
        f"int8 {one}": _bring(
            quantise_onnx(whole, one, _feeds(plain.predictor, learned, calibration_rows)), learned
        )
        for one in SCHEMES
        if scheme == one or (scheme == "auto" and not (slow and one == "dynamic"))
    }
    if trained and scheme in ("auto", "trained"):
        made[_TRAINED] = _bring(compact(_as_onnx(given.model, model.path)), learned)
    found = find_frontier(
        {name: one.predictor for name, one in made.items()},
        plain.predictor,
        rows,
        reference_name=_FLOAT,
        metric=metric,
        tolerance=tolerance,
        confidence=confidence,
    )
    chosen = made[found.chosen]
    digest = chosen.write(quantised.path)
    parameters = chosen.predictor.spec.parameters
    quantised.metadata.update(kind="model", digest=digest, parameters=parameters)
    times = len(whole) / len(chosen.content)
    notes = [
        f"The file shrinks {times:.2f} times, from {size(len(whole))} to "
        f"{size(len(chosen.content))}. {count(held)} of its numbers take 1 byte in place of 4; all "
        "else, such as the description of the columns, stays as it is.",
        "Ranges of activations are from "
        f"{counted(min(calibration_rows, learned.rows), 'row')} that the model has learned from.",
    ]
    if slow and scheme == "auto":
        notes.append(
            "Left out is dynamic: it convolves several times slower. Ask for it by `scheme`."
        )
    outputs = (metrics, report, summary, record)
    if left := left_in_float(whole, "dynamic" if found.chosen == "int8 dynamic" else "static"):
        notes.append(f"These stay in float32: {', '.join(left)}.")
    write_frontier(found, "int8", rows, *outputs, notes=notes, times_smaller=times)
    return found.verdict, found.reason


def _as_onnx(model: Model, folder: str) -> bytes:
    """Return a model as an ONNX file.

    Raises:
        InvalidInput: It cannot be one.
    """
    if isinstance(model, ForeignModel):
        if model.foreign.kind != "onnx":
            remedy = "is no network; give a model of this package, or an ONNX file"
            raise InvalidInput([Problem("model", model.foreign.kind, remedy)])
        with open(os.path.join(folder, "model.onnx"), "rb") as file:
            return file.read()
    with tempfile.TemporaryDirectory(prefix="kubestill-onnx-") as place:
        path = os.path.join(place, "model.onnx")
        try:
            export_onnx(model, path)
        except Exception as error:  # of the exporter, which wraps them in its own
            said = f"{type(error).__name__}: {error}"
            network = model.spec.network["factory"]
            remedy = f"cannot be exported as ONNX: {said:.400}"
            raise InvalidInput([Problem("model", network, remedy)]) from error
        with open(path, "rb") as file:
            return file.read()


def _bring(content: bytes, rows: Dataset) -> Brought:
    with tempfile.TemporaryDirectory(prefix="kubestill-onnx-") as place:
        path = os.path.join(place, "model.onnx")
        write_file(path, content)
        made = bring(path, rows, Options())
    assert made
    return made


def _feeds(model: ForeignPredictor, rows: Dataset, most: int) -> Iterator[dict[str, Any]]:
    """Yield rows from all over the dataset in batches, as inputs of the file."""
    runtime, layout = model.foreign.runtime, model.layout
    assert isinstance(runtime, OnnxFile)
    every, seen = max(1, rows.rows // most), 0
    for block in rows.iter_blocks():
        raw = decode_features(block, layout)[-seen % every :: every]
        seen += block.num_rows
        for start in range(0, len(raw), BATCH):
            part = Block(raw[start : start + BATCH], layout, model.foreign.foreign.inputs)
            yield runtime.feeds(part)
