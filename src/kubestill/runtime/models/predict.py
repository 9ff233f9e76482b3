"""A model as a function of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.models.bands import Bands
from kubestill.runtime.models.model import Model, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BATCH_ROWS", "Predictor", "probabilities"]

BATCH_ROWS = 8192
"""Rows of a batch. Fixed, counted from the first row: batch boundaries change the last bits."""


class Predictor:
    """Predicts from the columns that the model was trained on.

    Called on a DataFrame it returns one with the same index: `prediction` holds the label (a
    string) or the value in target units, `p_<class>` the probability of each class. Several values
    are `prediction_0`, `prediction_1`, ...; of a field, a target of two dimensions and more, a cell
    of `prediction` is an array of its shape. `fields` takes and returns plain arrays. With error
    bands of coverage 0.9, `low_0.9` and `high_0.9` are the ends of the band around `prediction`.
    """

    def __init__(self, model: Model, *, digest: str = ""):
        self.model = model.eval()
        self.layout = RawLayout(model.spec.schema)
        self.digest = digest
        """Of the export that it was loaded from; empty where it was built in memory."""
        self.bands: Bands | None = None
        """Error bands; None unless `load_model` was asked for them."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.model.spec

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predict every row; the order of columns and columns of no use do not matter.

        Missing values and categories never seen in training count as missing.

        Raises:
            InvalidInput: Columns are missing, or hold what cannot be read as their kind; all are
                listed.
        """
        raw = decode_features(frame, self.layout)
        logits = self.logits(raw)
        table = self.table(logits, frame.index)
        if self.bands is not None:
            for coverage, width in self.bands.widths(raw).items():
                for name, end in (("low", logits - width), ("high", logits + width)):
                    told = self.table(end, frame.index)
                    for column in told.columns:
                        table[column.replace("prediction", f"{name}_{coverage:g}")] = told[column]
        return table

    def fields(self, inputs: np.ndarray | pd.DataFrame | pa.Table) -> np.ndarray:
        """Return what the network says as one array, outputs in the target's shape.

        Args:
            inputs: Rows with the columns of the model; or, for one whose only feature is a tensor,
                an array [N, *shape] of them.

        Returns:
            float32 [N, *shape of the target] in target units, [N] for a number; for classes logits
            [N, K] ([N, 1] where there are two).

        Raises:
            InvalidInput: As for a table; or the array has another shape, or the model several
                features.
        """
        given = isinstance(inputs, np.ndarray)
        raw = self._raw(inputs) if given else decode_features(inputs, self.layout)
        outputs = self.logits(raw)
        target = self.spec.schema.target
        assert target is not None
        shape = target.shape if self.spec.task == "regression" else outputs.shape[1:]
        return outputs.reshape(len(outputs), *shape)

    def _raw(self, fields: np.ndarray) -> np.ndarray:
        """Return fields [N, *shape] as the raw matrix [N, R]."""
        features = self.layout.features
        if len(features) != 1 or features[0].kind != "tensor":
            names = [column.name for column in features]
            remedy = f"is no table; this model reads one with the columns {names}"
            raise InvalidInput([Problem("inputs", f"an array {list(fields.shape)}", remedy)])
        if fields.shape[1:] != features[0].shape:
            remedy = f"the model reads [N, {', '.join(map(str, features[0].shape))}]"
            raise InvalidInput([Problem("inputs", list(fields.shape), remedy)])
        return fields.astype(np.float32).reshape(len(fields), self.layout.width)

    def logits(self, raw: np.ndarray) -> np.ndarray:
        """Map raw [N, R] to logits [N, K] (binary: [N, 1]) or predictions [N, T], float32."""
        device = self.model.device
        parts: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(raw), BATCH_ROWS):
                block = np.ascontiguousarray(raw[start : start + BATCH_ROWS])
                parts.append(self.model(torch.from_numpy(block).to(device)).float().cpu())
        if not parts:
            return np.zeros((0, self.layout.outputs), np.float32)
        return torch.cat(parts).numpy()

    def table(self, logits: np.ndarray, index: pd.Index | None = None) -> pd.DataFrame:
        """Turn what `logits` gives into predictions and probabilities."""
        import pandas as pd  # training needs none: its start is a fifth shorter without

        names = self.spec.outputs
        if self.spec.task == "regression":
            target = self.spec.schema.target
            if target and len(target.shape) > 1:
                cells = list(logits.reshape(len(logits), *target.shape))
                return pd.DataFrame({"prediction": pd.Series(cells, index=index, dtype=object)})
            plain = len(names) == 1
            columns = ["prediction"] if plain else [f"prediction_{i}" for i in range(len(names))]
            return pd.DataFrame(logits, columns=columns, index=index)
        chances = probabilities(logits)
        labels = np.asarray(names, dtype=object)[chances.argmax(axis=1)]
        columns = [f"p_{name}" for name in names]
        table = pd.DataFrame(chances, columns=columns, index=index)
        table.insert(0, "prediction", pd.Series(labels, index=table.index, dtype="str"))
        return table


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Turn logits [N, K], or [N, 1] for binary, into probabilities [N, K], [N, 2]."""
    values = torch.from_numpy(logits)
    if values.shape[1] == 1:
        return torch.sigmoid(torch.cat([-values, values], dim=1)).numpy()
    return torch.softmax(values, dim=1).numpy()
