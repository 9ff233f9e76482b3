"""scikit-learn's models, as skops writes them: a zip of JSON and arrays, without pickle."""

# skops and scikit-learn are only partly typed.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems
from kubestill.runtime.base import LARGEST, trust
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.datasets.columns import label_strings
from kubestill.runtime.models.foreign.runtime import MOST, Block, Declared, need

HARMLESS = (
    "functools.partial",
    "numpy.dtype",
    "sklearn._loss.loss.HalfTweedieLoss",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
"""Parts of scikit-learn's models that skops does not list. They hold numbers, names and models; the
function of a partial one is listed by itself."""


class SkopsFile:
    """An estimator, or a pipeline that begins with the raw columns."""

    def __init__(self, content: bytes, trusted: Iterable[str] = ()):
        skops = need("skops.io", "skops")
        held = _check_sizes(content)
        types: list[str] = []
        try:
            types = skops.get_untrusted_types(data=content)
            _check_types(types, trusted)
            with warnings.catch_warnings():
                # Another version of scikit-learn wrote it: the rows tried and the scores tell.
                warnings.simplefilter("ignore")
                self._model: Any = skops.loads(content, trusted=types)
        except InvalidInput:
            raise
        except Exception as error:  # whatever a damaged file makes of constructors
            raise CorruptData(f"skops cannot load it: {type(error).__name__}: {error}") from error
        libraries = need("threadpoolctl", "skops").ThreadpoolController()
        self._threads: Any = libraries.select(user_api="openmp")
        names = getattr(self._model, "feature_names_in_", None)
        self._named = names is not None
        classes = getattr(self._model, "classes_", None)
        if isinstance(classes, list):
            remedy = "predicts several targets; bring in a model of one"
            raise InvalidInput([Problem("model", type(self._model).__name__, remedy)])
        if classes is not None and not hasattr(self._model, "predict_proba"):
            remedy = "gives no probabilities; fit it inside CalibratedClassifierCV"
            raise InvalidInput([Problem("model", type(self._model).__name__, remedy)])
        if not hasattr(self._model, "predict"):
            remedy = "is no model that predicts; save the fitted pipeline with its last step"
            raise InvalidInput([Problem("model", type(self._model).__name__, remedy)])
        numeric: set[str] = set()
        learned: dict[str, frozenset[str]] = {}
        for name, labels in _encoded(self._model):
            if getattr(labels, "dtype", np.dtype(object)).kind in "iufb":
                numeric.add(name)
                told = label_strings(pa.array(labels)).drop_null().to_pylist()
            else:
                told = [label for label in labels if isinstance(label, str)]
            learned[name] = learned.get(name, frozenset()) | frozenset(told)
        self.declared = Declared(
            inputs=tuple(map(str, names)) if names is not None else None,
            width=getattr(self._model, "n_features_in_", None),
            reads="labels" if self._named else "numbers",
            numeric=frozenset(numeric),
            learned=learned,
            worded=frozenset(name for name in learned if learned[name] and name not in numeric),
            classes=None
            if classes is None
            else tuple(label_strings(pa.array(classes.tolist())).to_pylist()),
            outputs=len(classes) if classes is not None else None,
            answers="probability" if classes is not None else "value",
            parameters=held,
        )

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return probabilities of classes, or values."""
        wide = rows.in_float64()  # boosting compares in float64
        given = wide.frame if self._named else wide.matrix
        # As many threads as torch has: one, where blocks are computed side by side. Boosting meets
        # its threads after every tree, and waits for those of another block.
        with self._threads.limit(limits=torch.get_num_threads()):
            if self.declared.classes is not None:
                return self._model.predict_proba(given)
            return self._model.predict(given)


def _check_types(types: list[str], trusted: Iterable[str]) -> None:
    problems = Problems()
    for name in types:
        if name in HARMLESS:
            continue
        module, _, kind = name.rpartition(".")
        with problems.collect():
            trust.check_trusted(
                f"{module}:{kind}", field="type", group=trust.TEACHERS, trust=trusted
            )
    problems.raise_if_any()


def _check_sizes(content: bytes) -> int:
    """Compare what a zip and its arrays claim with the bytes that there are.

    Returns:
        Numbers that the arrays hold.

    Raises:
        CorruptData: It is no whole zip, or unpacks to more than a model may have.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            members = packed.infolist()
            held = 0
            total = sum(member.file_size for member in members)
            if total > MOST:
                raise ValueError(f"it unpacks to {total:,} bytes, more than {MOST:,}")
            for member in members:
                if member.filename == "schema.json" and member.file_size <= LARGEST:
                    parse_json(packed.read(member), source="schema.json", what="skops schema")
                elif member.filename.endswith(".npy"):
                    with packed.open(member) as file:
                        held += _check_array(file, member)
                elif member.filename == "schema.json" or member.file_size > LARGEST:
                    raise ValueError(f"{member.filename} is larger than {LARGEST} bytes")
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise CorruptData(f"this is no whole skops file: {error}") from error
    return held


def _check_array(file: Any, member: zipfile.ZipInfo) -> int:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{member.filename} is an array of an unknown version")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} claims {shape} of {dtype}, which it does not hold")
    return math.prod(shape) * len(dtype.names or (0,))


def _encoded(model: Any, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the columns that an encoder makes numbers of, and the categories that it has learned.

    Encoders are anywhere: in pipelines, in a search's best estimator, in boosting itself.
    """
    seen = set() if seen is None else seen
    if id(model) in seen:
        return
    seen.add(id(model))
    if isinstance(model, list | tuple | dict):
        parts = model.values() if isinstance(model, dict) else model
    elif type(model).__module__.startswith("sklearn."):
        names = getattr(model, "feature_names_in_", None)
        learned = getattr(model, "categories_", None)
        if names is not None and learned is not None:
            yield from zip(map(str, names), learned, strict=False)
        parts = getattr(model, "__dict__", {}).values()
    else:
        return
    for part in parts:
        yield from _encoded(part, seen)
