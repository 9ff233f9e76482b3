"""The moving average of the weights, which is what gets evaluated and exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.artifacts import LocalArtifact
from kubestill.runtime.data.dataset import DatasetWriter
from kubestill.runtime.data.schema import Column, Schema
from kubestill.runtime.models.export import load_model
from kubestill.runtime.tasks.train_teacher import train_teacher

LINE = Schema(
    columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
    task="regression",
)
X = np.linspace(-1, 1, 256, dtype=np.float32)
ROWS = pd.DataFrame({"x": X, "y": 3 * X})


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> LocalArtifact:
    folder = str(tmp_path_factory.mktemp("line"))
    with DatasetWriter(folder, LINE) as writer:
        writer.write(ROWS)
    return LocalArtifact(folder, metadata={"kind": "dataset"})


def rmse(line: LocalArtifact, out: Path, decay: float) -> float:
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: dict[str, Any] = {name: LocalArtifact(str(out / name)) for name in names}
    train_teacher(
        dataset=line,
        steps=120,
        batch_size=64,
        learning_rate=0.01,
        settings={"ema_decay": decay},
        **ports,
    )
    predicted = load_model(str(out / "model"))(ROWS)["prediction"]
    return float(np.sqrt(np.mean((predicted - ROWS["y"]) ** 2)))


def test_the_average_of_a_short_training_has_forgotten_where_it_began(
    line: LocalArtifact, tmp_path: Path
) -> None:
    plain, averaged = (rmse(line, tmp_path / str(d), d) for d in (0.0, 0.999))
    assert plain < 0.05
    assert averaged < 0.2  # most of 0.999's memory would be the initial weights, off by 1.7
