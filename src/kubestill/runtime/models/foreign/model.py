"""Load and call a foreign model: as a `Predictor` it goes wherever a model of our own goes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Problem
from kubestill.runtime.base import trust as trusted
from kubestill.runtime.base.values import Digest, JsonObject, read_as
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.models.encoder import ColumnEncoding, Encoder
from kubestill.runtime.models.foreign.boosters import CatBoost, LightGbm, XgBoost
from kubestill.runtime.models.foreign.endpoint import Endpoint
from kubestill.runtime.models.foreign.huggingface import HuggingFace
from kubestill.runtime.models.foreign.onnx_file import OnnxFile
from kubestill.runtime.models.foreign.pictures import PictureClassifier, reads_pictures
from kubestill.runtime.models.foreign.pt2_file import ExportedProgram
from kubestill.runtime.models.foreign.python import PythonTeacher, find_teacher
from kubestill.runtime.models.foreign.runtime import Block, Runtime
from kubestill.runtime.models.foreign.several import Several
from kubestill.runtime.models.foreign.skops_file import SkopsFile
from kubestill.runtime.models.foreign.spec import ForeignSpec, Format
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import BATCH_ROWS, Predictor
from kubestill.runtime.models.resolve import source_digest

CERTAIN = 1e-7
"""The nearest to 0 and 1 that a probability counts as: a logit has to be finite."""
_LOOSE = 1e-3
"""What the probabilities of a row may miss 1 by."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Network:
    factory: str
    args: JsonObject
    source: Digest | None


def open_runtime(
    kind: Format,
    content: bytes,
    *,
    factory: str = "",
    args: Mapping[str, Any] | None = None,
    output: str = "",
    vouched: bool = False,
    trust: Iterable[str] = (),
    device: str = "cpu",
) -> Runtime:
    """Load a foreign model.

    Args:
        kind: The format of its file.
        content: Of that file.
        factory: Import path of a teacher of the user's own, or the address of an endpoint.
        args: Its arguments, or what a user said that the file does not.
        output: Name of the output to read.
        vouched: The user typed the import path.
        trust: Packages that the caller vouches for.
        device: Where transformers, programs of torch.export and models of this package compute, the
            latter as one of several teachers; all others compute on the CPU.

    Raises:
        InvalidInput: What runs it is not installed, or nobody vouches for what it names.
        CorruptData: The file is damaged.
    """
    if kind == "lightgbm":
        return LightGbm(content)
    if kind == "xgboost":
        return XgBoost(content, (args or {}).get("missing"))
    if kind == "catboost":
        return CatBoost(content)
    if kind == "onnx":
        return OnnxFile(content, output)
    if kind == "pt2":
        return ExportedProgram(content, output, device)
    if kind == "skops":
        return SkopsFile(content, trust)
    if kind == "several":
        return Several.load(content, trust, device)
    if kind == "huggingface":
        kind_of = PictureClassifier if reads_pictures(content) else HuggingFace
        return kind_of(content, device)
    if kind == "endpoint":
        trusted.check_trusted(factory, field="teacher", group=trusted.TEACHERS, trust=trust)
        endpoint = Endpoint(content)
        if endpoint.url != factory:
            raise CorruptData(f"the endpoint is {endpoint.url}, not {factory!r:.200}")
        return endpoint
    return PythonTeacher(find_teacher(factory, vouched=vouched, trust=trust), args or {}, content)


def load_foreign(
    form: Mapping[str, Any],
    content: bytes,
    *,
    digest: str,
    trust: Iterable[str] = (),
    device: str = "cpu",
) -> ForeignPredictor:
    """Load what `load_model` found to be a foreign model.

    Args:
        form: Content of `model.json`.
        content: Of the file beside it, whose digest was checked.
        digest: The model's.
        trust: As of `load_model`.
        device: As of `load_model`.

    Raises:
        CorruptData: The spec or the file is damaged, or they do not belong together.
        InvalidInput: As of `open_runtime`.
    """
    spec = ForeignSpec.from_json(form)
    network = read_as(_Network, spec.network, source="the model spec", what="network")
    runtime = open_runtime(
        spec.kind,
        content,
        factory=network.factory,
        args=network.args,
        output=spec.output,
        trust=trust,
        device=device,
    )
    width = sum(1 if column.text else column.width for column in spec.schema.features)
    if runtime.declared.width not in (None, width):
        raise CorruptData(f"the model reads {runtime.declared.width} numbers a row, not {width}")
    if runtime.declared.outputs not in (None, spec.width):
        raise CorruptData(
            f"the model puts out {runtime.declared.outputs} numbers, not {spec.width}"
        )
    if network.source is not None:
        found = find_teacher(network.factory, vouched=False, trust=trust)
        if source_digest(found) != network.source:  # pyright: ignore[reportArgumentType]
            log.warning("%s changed since this model was brought in", network.factory)
    return ForeignPredictor(spec, runtime, digest=digest)


class ForeignModel(Model):
    """A foreign model as a module on the CPU: raw [B, R] in, logits or predictions out."""

    def __init__(self, spec: ForeignSpec, runtime: Runtime):
        nn.Module.__init__(self)
        self.spec = self.foreign = spec
        self.runtime = runtime
        self.layout = RawLayout(spec.schema)
        # It reads raw rows: there is nothing to encode.
        self.encoder = Encoder([ColumnEncoding(name="", kind="raw", shape=(self.layout.width,))])

    @property
    def bytes(self) -> int:
        """Size of its file."""
        return self.foreign.bytes

    def forward(self, raw: Tensor) -> Tensor:
        """Map raw [B, R] to logits [B, K], [B, 1] for binary, or to predictions [B, T]."""
        return torch.from_numpy(self.answer(raw.detach().cpu().numpy()))

    def answer(self, raw: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Do what `forward` does, on arrays.

        Raises:
            InvalidInput: The library refuses the rows, or its answers are not what they should be.
        """
        spec = self.foreign
        return to_logits(ask(self.runtime, Block(raw, self.layout, spec.inputs), spec.kind), spec)

    def answer_weighed(
        self, raw: NDArray[np.float32]
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
        """Return what `answer` does, and what several teachers have the rows weigh [B].

        Raises:
            InvalidInput: As of `answer`.
        """
        spec = self.foreign
        assert isinstance(self.runtime, Several)
        outputs, weights = self.runtime.predict_weighed(Block(raw, self.layout, spec.inputs))
        return to_logits(_sound(outputs, len(raw)), spec), weights


class ForeignPredictor(Predictor):
    """A foreign model as a function of a table; see `Predictor`."""

    def __init__(self, spec: ForeignSpec, runtime: Runtime, *, digest: str = ""):
        self.foreign = ForeignModel(spec, runtime)
        super().__init__(self.foreign, digest=digest)

    def logits(self, raw: np.ndarray) -> np.ndarray:
        """Map raw [N, R] to logits [N, K] (binary: [N, 1]) or predictions [N, T], float32."""
        parts = [self.foreign.answer(rows) for rows in _batches(raw)]
        if not parts:
            return np.zeros((0, self.layout.outputs), np.float32)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    @property
    def weighs(self) -> bool:
        """Whether several teachers have rows weigh what they agree."""
        return isinstance(self.foreign.runtime, Several) and self.foreign.runtime.weighs

    def weighed(self, raw: np.ndarray) -> tuple[np.ndarray, NDArray[np.float64] | None]:
        """Return `logits`, and what rows weigh by the agreement of several teachers."""
        if not self.weighs:
            return self.logits(raw), None
        found = [self.foreign.answer_weighed(rows) for rows in _batches(raw)]
        logits, weights = (
            zip(*found, strict=True) if found else ((self.logits(raw),), (np.ones(0),))
        )
        return np.concatenate(logits), np.concatenate(weights)

    def announce(self, rows: int, *, most: bool = False) -> None:
        """Say what answers for so many rows may cost, of an endpoint or of those among several.

        Raises:
            Refused: It is more than the budget.
        """
        if isinstance(self.foreign.runtime, Endpoint | Several):
            self.foreign.runtime.announce(rows, most=most)

    def latency(self, rows: int) -> float | None:
        """Return the seconds that so many rows take an endpoint, or those among several."""
        runtime = self.foreign.runtime
        return runtime.latency(rows) if isinstance(runtime, Endpoint | Several) else None

    @property
    def remote(self) -> bool:
        """Whether it is an endpoint, or has one among several."""
        runtime = self.foreign.runtime
        return isinstance(runtime, Endpoint) or (isinstance(runtime, Several) and runtime.remote)


def _batches(raw: np.ndarray) -> list[np.ndarray]:
    return [raw[start : start + BATCH_ROWS] for start in range(0, len(raw), BATCH_ROWS)]


def ask(runtime: Runtime, rows: Block, kind: str) -> NDArray[np.floating[Any]]:
    """Return the outputs [B, M] for some rows, all of them finite.

    Raises:
        InvalidInput: The library refuses the rows, or puts out something else.
    """
    try:
        outputs = np.asarray(runtime.predict(rows))
    except KubestillError:
        raise  # of an endpoint, in words already
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        remedy = f"its own library refuses {len(rows):,} rows of this dataset: {said:.600}"
        raise InvalidInput([Problem("model", kind, remedy)]) from error
    return _sound(outputs, len(rows))


def _sound(outputs: NDArray[Any], rows: int) -> NDArray[np.floating[Any]]:
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    if outputs.ndim != 2 or len(outputs) != rows or outputs.dtype.kind not in "iuf":
        found = f"{outputs.dtype} {list(outputs.shape)}"
        remedy = f"it should put out numbers [{rows}, K] for {rows} rows"
        raise InvalidInput([Problem("model", found, remedy)])
    if not np.isfinite(outputs).all():
        broken = int((~np.isfinite(outputs)).any(axis=1).sum())
        remedy = "its answers are NaN or infinite; a student cannot learn from those"
        raise InvalidInput([Problem("model", f"{broken:,} of {rows:,} rows", remedy)])
    return outputs


def to_logits(outputs: NDArray[np.floating[Any]], spec: ForeignSpec) -> NDArray[np.floating[Any]]:
    """Turn a model's own outputs [B, M] into logits [B, K], [B, 1] for binary, or values [B, T].

    Raises:
        InvalidInput: There are more or fewer than expected, or they are no probabilities although
            they were declared so.
    """
    if outputs.shape[1] != spec.width:
        remedy = f"it should put out {spec.width} numbers for a row"
        raise InvalidInput([Problem("model", f"{outputs.shape[1]} numbers", remedy)])
    if spec.answers == "probability":
        outputs = _log_odds(outputs)
    if spec.width == 1 and spec.task == "binary":
        # The one output is that of the model's second class.
        found = outputs if spec.order == (0, 1) else -outputs
    elif spec.task == "binary":
        found = outputs[:, spec.order[1:]] - outputs[:, spec.order[:1]]
    elif spec.order == tuple(range(len(spec.order))):
        found = outputs
    else:
        found = outputs[:, spec.order]
    target = spec.schema.target
    exact = spec.task == "regression" and target is not None and target.offset
    return np.ascontiguousarray(found, dtype=np.float64 if exact else np.float32)


def _log_odds(outputs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the logits of probabilities [B, M]: of one its log odds, of several their logs."""
    chances = outputs.astype(np.float64)
    low, high = chances.min(initial=0.0), chances.max(initial=1.0)
    off = float(np.abs(chances.sum(axis=1) - 1).max(initial=0.0)) if chances.shape[1] > 1 else 0.0
    if low < -_LOOSE or high > 1 + _LOOSE or off > _LOOSE:
        said = f"from {low:.3g} to {high:.3g}" + (f", rows that miss 1 by {off:.3g}" * (off > 0))
        remedy = "these are no probabilities; say output='logit' if they are scores before softmax"
        raise InvalidInput([Problem("output", said, remedy)])
    chances = np.clip(chances, CERTAIN, 1 - CERTAIN)
    return np.log(chances) if chances.shape[1] > 1 else np.log(chances) - np.log1p(-chances)
