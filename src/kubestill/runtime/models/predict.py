"""A model as a function of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.stream import ahead
from kubestill.runtime.models.bands import Bands
from kubestill.runtime.models.familiar import Familiar
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.models.rows import FewRows, RowReader

if TYPE_CHECKING:
    import pandas as pd

BATCH_ROWS = 8192
"""Rows of a batch. Fixed, counted from the first row: batch boundaries change the last bits."""


class Predictor:
    """Predicts from the columns that the model was trained on, and answers in the form it is asked.

    | called on | answers with |
    | --- | --- |
    | DataFrame | DataFrame with the same index |
    | dict of one row's values, or Series | dict, or Series |
    | list of dicts, one a row | list of dicts |
    | dict of columns | dict of lists |
    | numpy array [N, columns], in the order of `columns` | DataFrame |
    | Arrow table | Arrow table |

    `prediction` holds the label (a string) or the value in target units, `p_<class>` the
    probability of each class. Several values are `prediction_0`, `prediction_1`, ...; of a field, a
    target of two dimensions and more, a cell of `prediction` is an array of its shape. `fields`
    returns plain arrays. With error bands of coverage 0.9, `low_0.9` and `high_0.9` are the ends of
    the band around `prediction`.
    """

    def __init__(self, model: Model, *, digest: str = ""):
        self.model = model.eval()
        self.layout = RawLayout(model.spec.schema)
        self.digest = digest
        """Of the export that it was loaded from; empty where it was built in memory."""
        self.copies: tuple[Model, ...] = ()
        """The same model on other devices: blocks of rows take turns among all of them."""
        self.bands: Bands | None = None
        """Error bands; None unless `load_model` was asked for them."""
        self.familiar = Familiar(model.encoder.columns)
        """What rows held that training would have refused, or never saw."""
        self._reader = RowReader(self.layout)
        self._encode_few = FewRows(model.encoder)
        target, names = model.spec.schema.target, model.spec.outputs
        assert target is not None
        self._classes = model.spec.task != "regression"
        self._field = target.shape if not self._classes and len(target.shape) > 1 else ()
        self._labels = np.asarray(names, dtype=object)
        self._chances = [f"p_{name}" for name in names]

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.model.spec

    def announce(self, rows: int, *, most: bool = False) -> None:
        """Say what answers for so many rows cost, where somebody charges for them.

        Args:
            rows: How many.
            most: It may be asked about fewer, so that nothing is refused yet.

        Raises:
            Refused: It is more than the budget.
        """

    @property
    def remote(self) -> bool:
        """Whether somebody else computes its answers, and may charge for them."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether it says what rows weigh for a student beside what it answers."""
        return False

    def weighed(
        self, raw: NDArray[np.float32]
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64] | None]:
        """Return `logits`, and what each row weighs [N], 0 to 1; None where it says nothing."""
        return self.logits(raw), None

    def latency(self, rows: int) -> float | None:
        """Return the seconds that so many rows take elsewhere; None where this process computes."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that it reads, in the order in which an array holds them."""
        return self._reader.columns

    @overload
    def __call__(self, rows: pd.DataFrame | NDArray[Any]) -> pd.DataFrame: ...
    @overload
    def __call__(self, rows: pd.Series) -> pd.Series: ...
    @overload
    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]: ...
    @overload
    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]: ...
    @overload
    def __call__(self, rows: pa.Table) -> pa.Table: ...

    def __call__(self, rows: Any) -> Any:
        """Predict every row; the order of columns and columns of no use do not matter.

        Missing values and categories never seen in training count as missing; `familiar` counts
        what training never saw.

        Raises:
            InvalidInput: Columns are missing, or hold what cannot be read as their kind, or what
                training never saw where `load_model` was to refuse that; all are listed.
        """
        raw, form = self._reader.read(rows)
        self.familiar.look(raw)
        if form == "row" and self._classes:
            chances = probabilities(self.logits(raw))[0].tolist()
            best = self._labels[chances.index(max(chances))]
            return {"prediction": best, **dict(zip(self._chances, chances, strict=True))}
        answers = self.answers(raw)
        if form == "frame":
            return self._frame(answers, getattr(rows, "index", None))
        if form == "table":
            return pa.table({name: arrow_array(values) for name, values in answers.items()})
        lists = {name: values.tolist() for name, values in answers.items()}
        if form == "columns":
            return lists
        if form == "rows":
            return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        row = {name: values[0] for name, values in lists.items()}
        if form == "row":
            return row
        import pandas as pd

        return pd.Series(row, name=rows.name, dtype=object)

    def read(self, rows: Any) -> NDArray[np.float32]:
        """Return rows in any form that a call takes as the raw matrix [N, R].

        Raises:
            InvalidInput: As of a call.
        """
        raw = self._reader.read(rows)[0]
        self.familiar.look(raw)
        return raw

    def fields(self, inputs: Any) -> NDArray[np.float32]:
        """Return what the network says as one array, outputs in the target's shape.

        Args:
            inputs: Rows in any form that a call takes; for a model whose only feature is a tensor,
                also an array [N, *shape] of them.

        Returns:
            float32 [N, *shape of the target] in target units, [N] for a number; for classes logits
            [N, K] ([N, 1] where there are two).

        Raises:
            InvalidInput: As of a call.
        """
        outputs = self.logits(self.read(inputs))
        target = self.spec.schema.target
        assert target is not None
        shape = outputs.shape[1:] if self._classes else target.shape
        return outputs.reshape(len(outputs), *shape)

    def logits(self, raw: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Map raw [N, R] to logits [N, K] (binary: [N, 1]) or predictions [N, T].

        float32, or float64 where the target has an offset: the model answers less than it.
        """
        target = self.layout.schema.target
        found = self._outputs(raw)
        return found.astype(np.float64) + target.offset if target and target.offset else found

    def _outputs(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the model computes for raw [N, R]."""
        if not len(raw):
            return np.zeros((0, self.layout.outputs), np.float32)
        model, device = self.model, self.model.device
        if len(raw) <= self._encode_few.most and device.type == "cpu":
            with torch.inference_mode():
                features = torch.tensor(self._encode_few(raw))
                return model.decoder(model.network(features)).float().numpy()
        models, starts = (model, *self.copies), range(0, len(raw), BATCH_ROWS)
        jobs = (
            partial(_compute, models[number % len(models)], raw[start : start + BATCH_ROWS])
            for number, start in enumerate(starts)
        )
        if not self.copies:
            return np.concatenate([job() for job in jobs])
        # While a device computes for one thread, another has the next block ready for it.
        workers = 2 * len(models)
        return np.concatenate(list(ahead(jobs, workers=workers, depth=workers)))

    def answers(self, raw: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return what a call answers to raw rows [N, R]: arrays [N, ...] by their names."""
        logits = self.logits(raw)
        if self._classes:
            chances = probabilities(logits)
            found = {"prediction": self._labels[chances.argmax(axis=1)]}
            return found | dict(zip(self._chances, chances.T, strict=True))
        found = self._predictions("prediction", logits)
        if self.bands is not None:
            for coverage, width in self.bands.widths(raw).items():
                found |= self._predictions(f"low_{coverage:g}", logits - width)
                found |= self._predictions(f"high_{coverage:g}", logits + width)
        return found

    def _predictions(self, name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if self._field:
            return {name: values.reshape(-1, *self._field)}
        if len(self._labels) == 1:
            return {name: values[:, 0]}
        return {f"{name}_{place}": values[:, place] for place in range(len(self._labels))}

    def _frame(self, answers: dict[str, NDArray[Any]], index: pd.Index | None) -> pd.DataFrame:
        import pandas as pd  # training needs none: its start is a fifth shorter without

        columns: dict[str, Any] = dict(answers)
        if self._field:
            columns = {name: list(values) for name, values in answers.items()}
        elif self._classes:
            columns["prediction"] = pd.array(answers["prediction"], dtype="str")
        return pd.DataFrame(columns, index=index, copy=False)


def _compute(model: Model, block: NDArray[np.float32]) -> NDArray[np.float32]:
    # Each thread has a mode of its own.
    with torch.inference_mode():
        given = torch.from_numpy(np.ascontiguousarray(block)).to(model.device)
        return model(given).float().cpu().numpy()


def arrow_array(values: NDArray[Any]) -> pa.Array:
    """Return values [N, ...] as a column of Arrow."""
    if values.ndim > 1:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    return pa.array(values)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits [N, K], or [N, 1] for binary, into probabilities [N, K], [N, 2]."""
    values = torch.from_numpy(logits)
    if values.shape[1] == 1:
        return torch.sigmoid(torch.cat([-values, values], dim=1)).numpy()
    return torch.softmax(values, dim=1).numpy()
