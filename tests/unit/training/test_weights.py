"""Weights of rows and classes in training: a weight of 2 is the row twice, on every path."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.metrics.catalog import TASKS
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.training.batches import ResidentRows
from kubestill.runtime.training.losses import NAMES, Weighted, build_loss
from kubestill.runtime.training.prepare import _loss_weights
from kubestill.runtime.training.record import read_training
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.validation import Validation

ROWS, K = 24, 3


def given(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Outputs and targets of a loss."""
    seeded = torch.Generator().manual_seed(0)
    outputs = torch.randn(ROWS, K, generator=seeded, dtype=torch.float64)
    values = torch.randn(ROWS, K, generator=seeded, dtype=torch.float64)
    labels = torch.randint(-1, K, (ROWS,), generator=seeded)
    gaps = torch.where(labels[:, None] < 0, torch.nan, 2 * values)
    match name:
        case "cross_entropy":
            return outputs, [labels.clamp(min=0)]
        case "binary_cross_entropy":
            return outputs[:, :1], [(values[:, :1] > 0).double()]
        case "distillation":
            return outputs, [torch.softmax(values, 1), labels]
        case "distillation_mse":
            return outputs, [values, gaps]
        case _:
            return outputs, [values]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_takes_a_weight_as_so_many_copies(name: str) -> None:
    outputs, targets = given(name)
    counts = torch.randint(0, 4, (ROWS,), generator=torch.Generator().manual_seed(1))
    loss = build_loss(name, temperature=2.0, hard_weight=0.3)
    origin = torch.arange(ROWS).repeat_interleave(counts)
    wanted, each = loss(outputs[origin], tuple(target[origin] for target in targets))
    wanted_gradient = torch.zeros_like(outputs).index_add(0, origin, each)
    weights = counts.double() / counts.double().mean()
    value, gradient = Weighted(loss=loss)(outputs.clone(), (*targets, weights))
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("whole", [False, True], ids=["validation", "domain"])
def test_every_followed_metric_takes_a_weight_as_so_many_copies(task: str, whole: bool) -> None:
    outputs, values = (torch.randn(3 * ROWS, 2) for _ in range(2))
    if task == "binary":
        outputs, values = outputs[:, :1], (values[:, 0] > 0).long()
        values = values[:, None].float() if whole else values
    elif task == "multiclass":
        values = (values[:, 0] > 0).long()
    counts = torch.randint(0, 4, (3 * ROWS,))
    origin = torch.arange(3 * ROWS).repeat_interleave(counts)
    decoder = Decoder([1.0, 2.0], [3.0, 0.5]) if task == "regression" else Decoder()
    network = nn.Linear(outputs.shape[1], outputs.shape[1])

    def scores(tensors: list[torch.Tensor], weighted: bool) -> dict[str, float]:
        followed = Validation(
            ResidentRows(tensors), task=task, decoder=decoder, whole_domain=whole, weighted=weighted
        )
        return followed(network)

    expected = scores([outputs[origin], values[origin]], False)
    assert scores([outputs, values, counts.float()], True) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(scores([outputs, values], False), rel=1e-3)


WEIGHED = Schema(
    columns=(
        Column(name="x", kind="numeric"),
        Column(name="w", kind="numeric", role="weight"),
        Column(name="y", kind="categorical", role="target", categories=("no", "yes")),
    ),
    task="binary",
)


def frame(rows: int = 64) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=rows)
    y = np.where(x + random.normal(size=rows) > 0, "yes", "no")
    return pd.DataFrame({"x": x, "y": y}), random.integers(0, 4, rows)


def write(folder: Path, rows: pd.DataFrame, schema: Schema) -> LocalArtifact:
    with DatasetWriter(str(folder), schema) as writer:
        writer.write(rows)
    return LocalArtifact(str(folder), metadata={"kind": "dataset"})


def plain(schema: Schema) -> Schema:
    columns = tuple(column for column in schema.columns if column.role != "weight")
    return Schema(columns=columns, task=schema.task)


def logit(folder: Path) -> np.ndarray:
    """What a trained model says at some points, whatever its scales are."""
    model = load_model(str(folder / "model"))
    told = model(pd.DataFrame({"x": np.linspace(-2, 2, 9)}))
    return np.log(told["p_yes"].to_numpy() / told["p_no"].to_numpy())


@pytest.mark.parametrize(
    "settings",
    [{"step_path": "fused"}, {"step_path": "autograd"}, {"finish_steps": 2}],
    ids=["fused", "autograd", "l-bfgs"],
)
def test_training_on_weights_is_training_on_copies(
    tmp_path: Path, train: Any, settings: dict[str, Any]
) -> None:
    rows, counts = frame()
    rows.loc[counts == 0, "x"] = 1e6  # What counts for nothing has no say in the scale either.
    copies = rows.loc[np.repeat(rows.index, counts)]
    options = {"steps": 20, "batch_size": 10_000, "learning_rate": 0.02, "network_args": SMALL}
    options["settings"] = {"precision": "float32", "choose": "last", **settings}
    weighted = write(tmp_path / "w", rows.assign(w=counts), WEIGHED)
    doubled = write(tmp_path / "d", copies, plain(WEIGHED))
    single = write(tmp_path / "s", rows, plain(WEIGHED))
    found, wanted, other = (
        logit(train(name, train_teacher, dataset=dataset, **options))
        for name, dataset in (("a", weighted), ("b", doubled), ("c", single))
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-3)
    assert np.abs(other - wanted).max() > 0.05


SMALL = {"hidden": [16]}


def weights_of(folder: Path, **settings: Any) -> np.ndarray:
    """What `prepare` gives the loss for each row."""
    dataset = Dataset.open(str(folder))
    layout = RawLayout(dataset.schema)
    found = _loss_weights(
        dataset.weights(), load_decoded(dataset, layout), layout, TrainingSettings(**settings)
    )
    return np.ones(dataset.rows, np.float32) if found is None else found


def test_class_weights_are_scikit_learns_balanced(tmp_path: Path) -> None:
    rows, counts = frame()
    rows = rows.loc[counts > 0].reset_index(drop=True)
    write(tmp_path / "s", rows, plain(WEIGHED))
    expected = compute_sample_weight("balanced", rows["y"])
    found = weights_of(tmp_path / "s", class_weights="balanced")
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)
    write(tmp_path / "w", rows.assign(w=counts[counts > 0]), WEIGHED)
    found = weights_of(tmp_path / "w", class_weights="balanced")
    sums = [found[rows["y"].to_numpy() == label].sum() for label in ("no", "yes")]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    named = weights_of(tmp_path / "s", class_weights={"yes": 3})
    assert set(np.round(named / named.min(), 5)) == {1, 3}
    assert (weights_of(tmp_path / "s", class_weights={"yes": 1}) == 1).all()


def test_rows_that_only_a_teacher_labelled_weigh_what_it_expects(tmp_path: Path) -> None:
    schema = plain(WEIGHED).with_soft("teacher", 1)
    rows = pd.DataFrame(
        {"x": [0.0, 1.0, 2.0], "y": ["no", "yes", None], "teacher": [[0.0], [0.0], [np.log(3.0)]]}
    )
    write(tmp_path / "s", rows, schema)
    found = weights_of(tmp_path / "s", class_weights={"yes": 5})
    np.testing.assert_allclose(found / found[0], [1, 5, 0.25 * 1 + 0.75 * 5], rtol=1e-5)


def test_what_weighs_nothing_is_refused_by_name_before_training(tmp_path: Path, train: Any) -> None:
    rows, _ = frame()
    zero = write(tmp_path / "z", rows.assign(w=0.0), WEIGHED)
    with pytest.raises(InvalidInput, match="weight 'w'.*all zero"):
        train("a", train_teacher, dataset=zero)
    for wrong, said in ((-1.0, "negative"), (np.nan, "missing or NaN"), (np.inf, "infinite")):
        with pytest.raises(InvalidInput, match=f"'w'.*64 {said}"):
            write(tmp_path / "n", rows.assign(w=wrong), WEIGHED)
    single = write(tmp_path / "s", rows, plain(WEIGHED))
    for asked, said in (
        ({"ja": 2}, "no such class.*yes"),
        ({"yes": 0, "no": 0}, "weight 0"),
        ({"yes": -1}, "a number, 0 or more"),
    ):
        with pytest.raises(InvalidInput, match=f"class_weights.*{said}"):
            train("b", train_teacher, dataset=single, settings={"class_weights": asked})
    with pytest.raises(InvalidInput, match="class_weights.*regression has no classes"):
        train("c", train_student, mode="hard", settings={"class_weights": "balanced"})


def test_validation_rows_of_no_weight_do_not_count(tmp_path: Path, train: Any) -> None:
    rows, counts = frame()
    swapped = rows.assign(y=np.where(rows["y"] == "no", "yes", "no"))
    mixed = pd.concat([rows.assign(w=1.0), swapped.assign(w=0.0)])
    dataset = write(tmp_path / "s", rows, plain(WEIGHED))
    scores = []
    for name, held, schema in (("m", mixed, WEIGHED), ("r", rows, plain(WEIGHED))):
        validation = write(tmp_path / name, held, schema)
        out = train(name, train_teacher, dataset=dataset, validation=validation, steps=5)
        scores.append(read_training(str(out / "model")))
    first, second = ([p.scores["log_loss"] for p in s.curves.validation] for s in scores if s)
    assert first == pytest.approx(second, rel=1e-6)
