"""Rows that stay on disk: the bits of resident ones, in memory that does not grow with them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.training import batches, prepare
from kubestill.runtime.training.batches import ResidentRows, StreamedRows
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.settings import parse_settings
from kubestill.runtime.training.validation import Validation

Task = Literal["binary", "multiclass", "regression"]
CPU = Machine(device=torch.device("cpu"), precision="float32")
OUTPUTS = {"binary": 1, "multiclass": 3, "regression": 5}
WIDE = 64
"""Targets of a row, and outputs of its teacher, in the test of memory."""


def make_dataset(root: Path, task: Task, rows: int) -> Dataset:
    """Write labelled rows with a teacher's outputs."""
    random = np.random.default_rng(rows)
    names, width = ("a", "b", "c"), OUTPUTS[task]
    if task == "regression":
        target = Column(name="y", kind="tensor", role="target", shape=(width,))
        labels: Any = list(random.normal(100, 7, (rows, width)).astype(np.float32))
    else:
        names = names[: max(2, width)]
        target = Column(name="y", kind="categorical", role="target", categories=names)
        labels = random.choice(names, rows)
    columns = (Column(name="x", kind="tensor", shape=(4,)), target)
    schema = Schema(columns=columns, task=task).with_soft("teacher", width)
    frame = pd.DataFrame(
        {
            "x": list(random.normal(size=(rows, 4)).astype(np.float32)),
            "y": labels,
            "teacher": list(random.normal(0, 3, (rows, width)).astype(np.float32)),
        }
    )
    with DatasetWriter(str(root), schema) as writer:
        writer.write(frame)
    return writer.dataset


def artifact(dataset: Dataset) -> LocalArtifact:
    return LocalArtifact(dataset.root, metadata={"kind": "dataset"})


def student(out: Path, **parameters: Any) -> dict[str, Any]:
    """Train; return the exported training record."""
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: dict[str, Any] = {name: LocalArtifact(str(out / name)) for name in names}
    told = {"network_args": {"hidden": [16]}, "batch_size": 64, "steps": 30, **parameters}
    train_student(**ports, **told, checkpoint_uri=str(out / "store"))
    return json.loads((out / "model" / "training.json").read_text())


@pytest.mark.parametrize(
    ("task", "loss"),
    [
        ("binary", "binary_cross_entropy"),
        ("binary", "distillation"),
        ("multiclass", "cross_entropy"),
        ("multiclass", "distillation"),
        ("regression", "mse"),
        ("regression", "distillation_mse"),
    ],
)
def test_streamed_rows_have_the_bits_of_resident_ones(
    task: Task, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path / "rows", task, 5003)
    settings = parse_settings({"hard_weight": 0.1}, {"shuffle": "full"})

    def rows() -> batches.Rows:
        return prepare.prepare(dataset, None, settings, CPU, loss_name=loss).rows

    resident = rows()
    monkeypatch.setattr(prepare, "available_bytes", lambda device: 0)
    monkeypatch.setattr(batches, "_PART_BYTES", 4096)
    streamed = rows()
    assert isinstance(resident, ResidentRows)
    assert isinstance(streamed, StreamedRows)
    index = torch.randperm(5003, generator=torch.Generator().manual_seed(0))[:1001]
    for one, two in zip(streamed.gather(index), resident.gather(index), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(streamed.between(7, 1000), resident.between(7, 1000), strict=True):
        assert torch.equal(one, two)


def test_a_streamed_training_exports_the_bits_of_a_resident_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "dataset": artifact(make_dataset(tmp_path / "rows", "regression", 3000)),
        "validation": artifact(make_dataset(tmp_path / "held", "regression", 500)),
        "settings": {"shuffle": "full"},
    }
    resident = student(tmp_path / "resident", **given)
    monkeypatch.setattr(prepare, "available_bytes", lambda device: 0)
    streamed = student(tmp_path / "streamed", **given)
    assert streamed["curves"] == resident["curves"]
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("resident", "streamed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_memory_of_a_streamed_training_does_not_grow_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_WINDOW_BYTES", 1 << 20)
    settings = {"shuffle": "blocks", "milestone_every": 60, "milestone_unit": "steps"}
    told = {"settings": settings, "steps": 60, "batch_size": 512}
    few, many = (wide_dataset(tmp_path / str(rows), rows) for rows in (1 << 14, 1 << 18))
    # Decoding has bounds of its own: both of its results are on the shelf before the measurement.
    load_decoded(many, RawLayout(many.schema))
    student(tmp_path / "first", dataset=artifact(few), validation=artifact(many), **told)
    with own_memory() as peak:
        student(tmp_path / "out", dataset=artifact(many), validation=artifact(many), **told)
    assert peak[0] < many.rows * 2 * WIDE * 4 / 2


def wide_dataset(root: Path, rows: int) -> Dataset:
    """Write rows of many targets and as many teacher outputs."""
    schema = Schema(
        columns=(
            Column(name="x", kind="numeric"),
            Column(name="y", kind="tensor", role="target", shape=(WIDE,)),
        ),
        task="regression",
    ).with_soft("teacher", WIDE)
    random, block = np.random.default_rng(0), 1 << 14
    with DatasetWriter(str(root), schema) as writer:
        for _ in range(rows // block):
            values = pa.array(random.random(block * WIDE, np.float32))
            wide = pa.FixedSizeListArray.from_arrays(values, WIDE)
            x = random.random(block, np.float32)
            writer.write(pa.table({"x": x, "y": wide, "teacher": wide}))
    return writer.dataset


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """Sample the bytes that the kernel cannot drop, unlike mapped files; yield [their peak]."""

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (found,) = (line for line in lines if line.startswith("RssAnon"))
        return int(found.split()[1]) * 1024

    def sample() -> None:
        while not over.wait(0.003):
            peak[0] = max(peak[0], anonymous() - before)

    over, before, peak = threading.Event(), anonymous(), [0]
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("rows", "off"), [(700, 0.0), (20_000, 1e-9)], ids=["one chunk", "more"])
def test_scores_of_chunks_are_those_of_all_rows_at_once(rows: int, off: float) -> None:
    torch.manual_seed(0)
    features, noise = torch.randn(rows, 3), torch.randn(rows, 3)
    target = features * 3 + noise + 50
    network = torch.nn.Linear(3, 3)
    decoder = Decoder([50.0] * 3, [3.0] * 3)
    found = Validation(ResidentRows([features, target]), task="regression", decoder=decoder)(
        network
    )
    error = (decoder(network(features)).detach() - target).double()
    spread = (target - target.mean(0)).double().square().sum()
    assert found == {
        "rmse": pytest.approx(float(error.square().mean().sqrt()), rel=off, abs=0.0),
        "mae": pytest.approx(float(error.abs().mean()), rel=off, abs=0.0),
        "r2": pytest.approx(float(1 - error.square().sum() / spread), rel=off, abs=0.0),
    }


@pytest.mark.parametrize(("rows", "off"), [(700, 0.0), (20_000, 1e-6)], ids=["one chunk", "more"])
def test_class_scores_of_chunks_are_those_of_all_rows_at_once(rows: int, off: float) -> None:
    torch.manual_seed(0)
    features, target = torch.randn(rows, 3), torch.randint(3, (rows,))
    network = torch.nn.Linear(3, 3)
    held = ResidentRows([features, target])
    found = Validation(held, task="multiclass", decoder=Decoder())(network)
    logits = network(features).detach()
    assert found["log_loss"] == pytest.approx(
        float(F.cross_entropy(logits, target)), rel=off, abs=0
    )
    assert found["accuracy"] == float((logits.argmax(1) == target).double().mean())
