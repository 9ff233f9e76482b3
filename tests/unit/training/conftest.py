"""A training small enough to run many of them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import DatasetWriter
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.steps.train_teacher import train_teacher

sys.path.insert(0, str(Path(__file__).parent))

LINE = Schema(
    columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
    task="regression",
)

Make = Callable[..., LocalArtifact]
Train = Callable[..., Path]


@pytest.fixture
def line(tmp_path: Path) -> Make:
    """Writes rows of y = 3 x as a dataset; `teacher` adds soft outputs, and y may lack then."""

    def make(name: str, x: Any = None, *, y: Any = None, teacher: Any = None) -> LocalArtifact:
        x = np.float32(np.linspace(-1, 1, 256) if x is None else x)
        frame = pd.DataFrame({"x": x, "y": np.float32(3 * x if y is None else y)})
        schema = LINE
        if teacher is not None:
            schema, frame["teacher"] = LINE.with_soft("teacher", 1), teacher
        with DatasetWriter(str(tmp_path / name), schema) as writer:
            writer.write(frame)
        return LocalArtifact(str(tmp_path / name), metadata={"kind": "dataset"})

    return make


def ports(out: Path) -> dict[str, Any]:
    """Return the outputs of a training, below one folder."""
    names = ("model", "ledger", "metrics", "report", "summary")
    return {name: LocalArtifact(str(out / name)) for name in names}


@pytest.fixture
def train(line: Make, tmp_path: Path) -> Train:
    """Trains a teacher on that line with checkpoints below `store`; returns its output folder."""

    def run(name: str = "out", run: Any = train_teacher, **parameters: Any) -> Path:
        given = {"steps": 60, "batch_size": 64, "learning_rate": 0.01}
        given |= {"checkpoint_uri": str(tmp_path / "store"), **parameters}
        if "dataset" not in given:
            given["dataset"] = line("rows")
        run(**given, **ports(tmp_path / name))
        return tmp_path / name

    return run
