"""What speaks against a refit, before it is promoted."""

import numpy as np
import pandas as pd
import pytest
import torch

from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.evaluation.refit import find_fault
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor

SCHEMA = Schema(
    columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
    task="regression",
)


@pytest.fixture
def rows(tmp_path) -> Dataset:
    x = np.random.default_rng(0).normal(size=400)
    noise = np.random.default_rng(1).normal(size=400)
    with DatasetWriter(str(tmp_path / "rows"), SCHEMA) as writer:
        writer.write(pd.DataFrame({"x": np.float32(x), "y": np.float32(2 * x + 0.1 * noise)}))
    return writer.dataset


def slope(rows: Dataset, value: float) -> Predictor:
    """A model that answers `value * x`."""
    layout = RawLayout(SCHEMA)
    encoder = Encoder.fit(iter([decode(rows, layout, ("raw",)).raw]), layout)
    model = Model.create(
        SCHEMA, encoder=encoder, decoder=Decoder(), network_args={"hidden": []}, seed=0
    )
    weight, bias = model.parameters()
    x = rows.to_pandas()["x"].to_numpy(np.float64)
    with torch.no_grad():
        weight.fill_(value * float(x.std()))
        bias.fill_(value * float(x.mean()))
    return Predictor(model)


@pytest.mark.parametrize("better", [2.0, 2.0001, 1.9999, 2.01])
def test_nothing_speaks_against_a_refit_that_is_as_good(rows: Dataset, better: float) -> None:
    assert find_fault(slope(rows, better), slope(rows, 2.0), rows) == "" or better == 2.01
    assert find_fault(slope(rows, better), slope(rows, 1.5), rows) == ""


def test_a_refit_that_is_worse_on_rows_it_learned_was_trained_wrong(rows: Dataset) -> None:
    told = find_fault(slope(rows, 1.5), slope(rows, 2.0), rows)
    x = rows.to_pandas()["x"].to_numpy(np.float64)
    y = rows.to_pandas()["y"].to_numpy(np.float64)
    lost = np.sqrt(np.mean((y - 1.5 * x) ** 2)) - np.sqrt(np.mean((y - 2 * x) ** 2))
    assert told == (
        f"its RMSE is worse by {lost:.3g} on the rows that judged the model, although it has "
        "learned from them"
    )


def test_a_refit_that_does_not_answer_is_refused(rows: Dataset) -> None:
    told = find_fault(slope(rows, float("nan")), slope(rows, 2.0), rows)
    assert told == "it gives NaN or infinity on 400 of 400 rows"
