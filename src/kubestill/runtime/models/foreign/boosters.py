"""Boosted trees in their libraries' own formats.

LightGBM's text, XGBoost's JSON or UBJSON, and CatBoost's binary, which is a flatbuffer.
"""

# They come without types.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubestill.errors import CorruptData, InvalidInput, Problem, Problems
from kubestill.runtime.base.values import parse_json
from kubestill.runtime.datasets.columns import label_strings
from kubestill.runtime.models.foreign.runtime import Block, Declared, need, spell
from kubestill.runtime.models.foreign.spec import Input, Spelling


class LightGbm:
    """What `Booster.save_model` of LightGBM writes."""

    def __init__(self, content: bytes):
        lightgbm = need("lightgbm", "lightgbm")
        header, trees = _read_text(content)
        try:
            self._booster: Any = lightgbm.Booster(model_str=content.decode("utf-8"))
        except (lightgbm.basic.LightGBMError, ValueError, RecursionError) as error:
            raise CorruptData(f"this is no whole LightGBM model: {error}") from error
        objective, _, options = header.get("objective", "").partition(" ")
        outputs = int(header["num_tree_per_iteration"])
        forest = "average_output" in header
        # The logit of LightGBM's own link; a random forest averages probabilities.
        sigmoid = re.search(r"sigmoid:([-+.\deE]+)", options)
        self._scale = float(sigmoid[1]) if sigmoid else 1.0
        logit = objective in ("binary", "multiclass", "cross_entropy", "xentropy") and not forest
        classes = objective in ("binary", "multiclass", "multiclassova", "cross_entropy")
        self._raw = logit
        self._share = objective == "multiclassova"
        names = tuple(header["feature_names"].split(" "))
        told: list[list[Any]] = self._booster.pandas_categorical or []
        infos = header.get("feature_infos", "").split(" ")
        # Numeric ranges stand in brackets, categories are joined by colons.
        coded = [name for name, info in zip(names, infos, strict=False) if _is_coded(info)]
        generic = names == tuple(f"Column_{place}" for place in range(len(names)))
        self.declared = Declared(
            inputs=None if generic else names,
            width=len(names),
            reads="numbers",
            categories={
                name: tuple(label_strings(pa.array(labels)).to_pylist())
                for name, labels in zip(coded, told, strict=False)
            }
            if len(told) == len(coded)
            else {},
            coded=frozenset(coded),
            classes=None,
            outputs=outputs,
            answers="logit"
            if logit
            else "probability"
            if classes
            else "value"
            if objective
            else None,
            parameters=trees,
        )

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return raw scores, or probabilities or values where those are no logits."""
        # One thread: blocks are computed side by side.
        found = self._booster.predict(rows.matrix, raw_score=self._raw, num_threads=1)
        if self._share:
            found = found / found.sum(axis=1, keepdims=True)
        return found * self._scale if self._raw else found


def _is_coded(info: str) -> bool:
    return info != "none" and not info.startswith("[")


_WHOLE = ("left_child", "right_child", "split_feature")


def _read_text(content: bytes) -> tuple[dict[str, str], int]:
    """Check what LightGBM's own reader takes on trust, which a damaged file crashes.

    Returns:
        The header, and how many numbers the trees hold.

    Raises:
        CorruptData: Arrays are of other lengths than the trees, or point out of them.
    """
    try:
        text = content.decode("utf-8")
        head, *blocks = text.partition("\nend of trees")[0].split("\nTree=")
        header = _fields(head)
        features = len(header["feature_names"].split(" "))
        if int(header["max_feature_idx"]) + 1 != features:
            raise ValueError("max_feature_idx does not fit feature_names")
        outputs = int(header["num_tree_per_iteration"])
        named = re.search(r"num_class:(\d+)", header.get("objective", ""))
        counts = {outputs, int(header["num_class"]), int(named[1]) if named else outputs}
        if len(counts) > 1 or outputs < 1:
            raise ValueError(f"it has {' or '.join(map(str, sorted(counts)))} outputs")
        sizes = [int(size) for size in header["tree_sizes"].split()]
        if [len(f"Tree={block}".encode()) + 1 for block in blocks[:-1]] != sizes[:-1]:
            raise ValueError("tree_sizes do not fit the trees")
        if len(sizes) != len(blocks) or "\nend of trees" not in text:
            raise ValueError("its end is missing")
        return header, sum(_check_tree(_fields(block), features) for block in blocks)
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptData(f"this is no whole LightGBM model: {said}") from error


def _fields(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.rstrip("\r").partition("=")
        if equals and name in found:
            raise ValueError(f"it has {name} twice")
        found[name] = value
    return found


def _check_tree(tree: dict[str, str], features: int) -> int:
    leaves = int(tree["num_leaves"])
    if len(tree["leaf_value"].split()) != leaves or leaves < 1:
        raise ValueError(f"a tree of {leaves} leaves has other leaf values")
    if int(tree.get("is_linear", "0")):
        raise ValueError("linear trees are not supported; train with linear_tree=false")
    if leaves == 1:
        return 1
    inner = leaves - 1
    whole = {name: np.array(tree[name].split(), dtype=np.int64) for name in _WHOLE}
    kinds = np.array(tree["decision_type"].split(), dtype=np.int64)
    thresholds = np.array(tree["threshold"].split(), dtype=np.float64)
    if any(len(values) != inner for values in (*whole.values(), kinds, thresholds)):
        raise ValueError(f"a tree of {leaves} leaves has arrays of other lengths")
    if whole["split_feature"].min() < 0 or whole["split_feature"].max() >= features:
        raise ValueError("a tree splits on a column that is not there")
    # A child comes after its parent, so that every path ends; below zero it is a leaf.
    for side in ("left_child", "right_child"):
        child = whole[side]
        ends = child < 0
        if np.any(~child[ends] >= leaves) or np.any(child >= inner):
            raise ValueError("a tree points out of itself")
        if np.any(child[~ends] <= np.flatnonzero(~ends)):
            raise ValueError("a tree goes round in circles")
    count = int(tree.get("num_cat", "0"))
    if count or np.any(kinds & 1):
        bounds = np.array(tree["cat_boundaries"].split(), dtype=np.int64)
        words = len(tree["cat_threshold"].split())
        if len(bounds) != count + 1 or bounds[0] != 0 or np.any(np.diff(bounds) < 0):
            raise ValueError("a tree has categories of other lengths")
        places = thresholds[(kinds & 1) == 1]
        if bounds[-1] != words or np.any((places < 0) | (places >= count)):
            raise ValueError("a tree points out of its categories")
    return leaves + inner


class XgBoost:
    """What `Booster.save_model` of XGBoost writes."""

    def __init__(self, content: bytes, missing: Any = None):
        """Load it; `missing` is a number that counts as missing, as NaN does."""
        xgboost = need("xgboost", "xgboost")
        self._xgboost: Any = xgboost
        self._booster: Any = xgboost.Booster()
        try:
            self._booster.load_model(bytearray(content))
            # One thread: blocks are computed side by side.
            self._booster.set_param({"nthread": 1})
            config = parse_json(self._booster.save_config(), source="XGBoost", what="model")
            learner = config["learner"]
            objective = str(learner["objective"]["name"])
            booster = str(learner["gradient_booster"]["name"])
            count = int(learner["learner_model_param"]["num_class"])
            targets = int(learner["learner_model_param"].get("num_target", "1"))
            told: dict[str, str] = self._booster.attributes()
            # scikit-learn's wrapper answers with the best of early stopping; a Booster with all.
            best = told.get("best_iteration") if "scikit_learn" in told else None
            self._rounds = (0, int(best) + 1 if best and booster != "gblinear" else 0)
            self._missing = float("nan" if missing is None else missing)
        except (xgboost.core.XGBoostError, KeyError, TypeError, ValueError) as error:
            said = str(error).partition("\nStack trace")[0]
            raise CorruptData(f"this is no whole XGBoost model: {said}") from error
        if objective == "binary:hinge":
            remedy = "puts out classes without probabilities; train with binary:logistic"
            raise InvalidInput([Problem("model", objective, remedy)])
        self._linear = booster == "gblinear"
        self._margin = objective.startswith(("binary:", "multi:"))
        self._types: list[str] | None = self._booster.feature_types
        names: list[str] | None = self._booster.feature_names
        kinds = dict(zip(names or (), self._types or (), strict=False))
        self.declared = Declared(
            inputs=tuple(names) if names else None,
            width=int(self._booster.num_features()),
            reads="numbers",
            categories=self._categories() if "c" in kinds.values() else {},
            coded=frozenset(name for name, kind in kinds.items() if kind == "c"),
            classes=None,
            outputs=max(count, targets),
            answers="logit" if self._margin else "value",
            parameters=0 if self._linear else _count_nodes(content),
        )

    def _categories(self) -> dict[str, tuple[str, ...]]:
        try:
            told = self._booster.get_categories(export_to_arrow=True).to_arrow() or []
        except (AttributeError, self._xgboost.core.XGBoostError):
            return {}  # before 3.1, files did not keep them
        return {
            name: tuple(label_strings(pa.array(labels)).to_pylist())
            for name, labels in told
            if labels is not None
        }

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return margins of classes, or values."""
        if self._linear:
            matrix = self._xgboost.DMatrix(
                rows.matrix,
                missing=self._missing,
                feature_names=self._booster.feature_names,
                nthread=1,
            )
            return self._booster.predict(matrix, output_margin=self._margin)
        told = "margin" if self._margin else "value"
        return self._booster.inplace_predict(
            rows.matrix,
            iteration_range=self._rounds,
            predict_type=told,
            validate_features=False,
            missing=self._missing,
        )


_NODES = re.compile(rb'num_nodes(?:":"|SL.{8})(\d{1,9})', re.DOTALL)
"""As JSON and as UBJSON write it."""


def _count_nodes(content: bytes) -> int:
    """Count splits and leaves; each is one learned number or two.

    The library could only be asked for a dump, of as many names as the file claims columns.
    """
    return min(sum(int(count) for count in _NODES.findall(content)), len(content))


_LOGIT = ("Logloss", "CrossEntropy", "MultiClass")
_VALUE = ("RMSE", "MAE", "MAPE", "Quantile", "Expectile", "Huber", "Lq", "MultiRMSE")


_STRANGE = "\x1f no label of anybody's \x1f"
_PROBED = 32
"""Labels of a column that a model is asked about."""
_REMEDY = (
    "import the column as 'categorical' from rows that spell it as it was when the model was fitted"
)
_GAPS = ("nan", "NaN", "None", "<NA>", "", "NA", "missing")
"""What people and libraries write for a missing label."""


class CatBoost:
    """What `save_model` of CatBoost writes."""

    def __init__(self, content: bytes):
        catboost = need("catboost", "catboost", extra="catboost")
        self._model: Any = catboost.CatBoost()
        try:
            self._model.load_model(blob=content)
            loss = str(self._model.get_all_params()["loss_function"]).partition(":")[0]
            texts = self._model.get_text_feature_indices()
            texts += self._model.get_embedding_feature_indices()
        except (catboost.CatBoostError, KeyError, TypeError, ValueError) as error:
            raise CorruptData(f"this is no whole CatBoost model: {error}") from error
        problems = Problems()
        if loss not in (*_LOGIT, *_VALUE):
            known = ", ".join((*_LOGIT, *_VALUE))
            problems.add("model", loss, f"is a loss whose outputs are not known here; use {known}")
        if texts:
            remedy = "reads texts or embeddings, which columns here are not"
            problems.add("model", [self._model.feature_names_[at] for at in texts], remedy)
        problems.raise_if_any()
        self._names: list[str] = list(self._model.feature_names_)
        self._coded = frozenset(self._model.get_cat_feature_indices())
        self._error: type[Exception] = catboost.CatBoostError
        named = self._names != [str(place) for place in range(len(self._names))]
        classes = label_strings(pa.array(list(self._model.classes_))).to_pylist()
        # One for each class, two classes included, where the loss is that of several.
        outputs = (len(classes) or None) if loss == "MultiClass" else 1
        self.declared = Declared(
            inputs=tuple(self._names) if named else None,
            width=len(self._names),
            reads="labels",
            numeric=frozenset(
                name for at, name in enumerate(self._names) if named and at not in self._coded
            ),
            classes=tuple(map(str, classes)) if loss in _LOGIT and classes else None,
            outputs=outputs if loss in _LOGIT else None,
            answers="logit" if loss in _LOGIT else "value",
            parameters=int(self._model.get_leaf_values().size),
        )

    def predict(self, rows: Block) -> NDArray[Any]:
        """Return raw values: logits of classes, or predictions."""
        return self._ask(self._columns(rows))

    def find_spellings(self, rows: Block) -> tuple[tuple[Input, ...], list[str]]:
        """Find out how categories were spelled when the model was fitted, by what it answers.

        Its file keeps hashes of them. A label that it knows moves its answers away from those that
        it gives for a label that nobody has.

        Args:
            rows: Some, for the other columns of a question.

        Returns:
            The inputs with the spellings found, and what a reader should know.
        """
        columns = self._columns(rows)
        found, notes, read = dict(rows.inputs), list[str](), self._read()
        for place, (given, name) in enumerate(zip(rows.names, self._names, strict=True)):
            kind = rows.column(given).kind
            if place not in read or kind == "text":
                continue
            held: Any = columns[name].categories
            labels = ["0", "1"] if kind == "boolean" else [one for one in held if one != "nan"]
            told, note = self._find_spelling(name, labels, columns)
            found[given] = replace(found[given], **told)
            notes += [f"column {given!r} {note}"] * bool(note)
        return tuple(found.values()), notes

    def _find_spelling(
        self, name: str, labels: Sequence[str], columns: Mapping[str, Any]
    ) -> tuple[dict[str, Any], str]:
        """Return what to change of an input whose dataset has these labels, and a note."""
        few = labels[:_PROBED]
        shown = ", ".join(map(repr, few[:3]))
        spellings = {one: [spell(label, one) for label in few] for one in get_args(Spelling)[1:]}
        known = self._known(name, {*few, *_GAPS}.union(*spellings.values()), columns)
        gaps = [word for word in _GAPS if word not in labels and word in known]
        told = {"missing": gaps[0]} if len(gaps) == 1 and gaps != ["nan"] else {}
        others: list[Spelling] = []
        doubted = False
        for spelling, spelled in spellings.items():
            pairs = [pair for pair in zip(few, spelled, strict=True) if pair[0] != pair[1]]
            same = len({spell(label, spelling) for label in labels}) < len(labels)
            if not same and any(other in known for _, other in pairs):
                others.append(spelling)
                doubted |= any(label in known for label, _ in pairs)
        if len(others) == 1 and not doubted:
            as_known = ", ".join(map(repr, spellings[others[0]][:3]))
            note = f"is read as {as_known}, which the model knows; it does not know {shown}"
            return told | {"spelling": others[0]}, note
        if others:
            also = ", ".join(repr(spellings[one][-1]) for one in others)
            return told, f"is read as {shown}, and the model also knows {also}: {_REMEDY}"
        if few and not known.intersection(few):
            return told, (
                f"is read as {shown}, and the model answers as to labels that it has never seen: "
                f"{_REMEDY}"
            )
        if told:
            return told, f"has its missing labels read as {gaps[0]!r}, as the model knows them"
        return told, ""

    def _known(self, name: str, labels: Collection[str], columns: Mapping[str, Any]) -> set[str]:
        """Return those labels of a column that are answered otherwise than one that nobody has."""
        import pandas as pd

        asked = [_STRANGE, *labels]
        rows = pd.DataFrame(columns)
        many = rows.iloc[np.tile(np.arange(len(rows)), len(asked))]
        answers = self._ask(many.assign(**{name: np.repeat(asked, len(rows))}))
        strange, *found = answers.reshape(len(asked), -1)
        return {
            label
            for label, answer in zip(labels, found, strict=True)
            if not np.allclose(answer, strange, rtol=1e-9, atol=1e-12)
        }

    def _read(self) -> set[int]:
        """Return the columns that answers depend on, as far as the file says."""
        try:
            found = self._model.get_feature_importance(thread_count=1)
        except self._error:
            return set(self._coded)
        return {*self._coded} & {*np.flatnonzero(found).tolist()}

    def _columns(self, rows: Block) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for place, (given, name) in enumerate(zip(rows.names, self._names, strict=True)):
            if place not in self._coded:
                columns[name] = rows.numbers(given)
            elif rows.column(given).kind == "text":
                columns[name] = rows.labels(given, missing="nan")
            else:
                columns[name] = rows.categorical(given)
        return columns

    def _ask(self, columns: Any) -> NDArray[Any]:
        import pandas as pd

        # One thread: blocks are computed side by side.
        return self._model.predict(
            pd.DataFrame(columns), prediction_type="RawFormulaVal", thread_count=1
        )
