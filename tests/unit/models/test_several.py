"""Several teachers as one, against arithmetic on what each of them says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import skops.io
from endpoint_server import language_model
from foreign_samples import dataset, features, table
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline

from kubestill.errors import CorruptData, InvalidInput, Refused
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset, gather
from kubestill.runtime.datasets.schema import Column
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.evaluation.cost import running_costs
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.foreign.packing import pack, unpack
from kubestill.runtime.models.foreign.several import Several
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student

TARGETS = ("label", "grade", "price")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a booster and a linear model of each target, and the rows."""
    place = tmp_path_factory.mktemp("several")
    frame = features().assign(shop=pd.Categorical(features()["shop"]))
    for target in TARGETS:
        rows = dataset(place / target, target)
        wanted = table()[target]
        classes = [] if target == "price" else sorted(set(wanted))
        given: dict[str, Any] = {"objective": "regression", "verbose": -1, "num_threads": 1}
        if classes:
            given["objective"] = "binary" if len(classes) == 2 else "multiclass"
            given |= {} if len(classes) == 2 else {"num_class": len(classes)}
        known = pd.Categorical(wanted).codes if classes else wanted
        lightgbm.train(given, lightgbm.Dataset(frame, known), 5).save_model(place / f"{target}.txt")
        linear = LogisticRegression() if classes else LinearRegression()
        model = make_pipeline(SimpleImputer(), linear)
        model.fit(features()[["amount", "flag"]].to_numpy(np.float64), wanted)
        skops.io.dump(model, place / f"{target}.skops")
        assert rows.rows == 600
    return place


def teachers(folder: Path, target: str) -> list[dict[str, Any]]:
    classes = [] if target == "price" else sorted(set(table()[target]))
    return [
        {"source": str(folder / f"{target}.txt"), "classes": classes},
        {"source": str(folder / f"{target}.skops"), "inputs": ["amount", "flag"]},
    ]


def answers(folder: Path, target: str, rows: Dataset) -> list[np.ndarray]:
    """Return what each says: probabilities of the classes by name, or values."""
    block = next(rows.iter_blocks())
    found: list[np.ndarray] = []
    for told in teachers(folder, target):
        options = {name: value for name, value in told.items() if name != "source"}
        brought = bring(told["source"], rows, Options.model_validate(options))
        assert brought is not None
        model = brought.predictor
        said = model.answers(decode_features(block, model.layout))
        values = [value for name, value in said.items() if target == "price" or name[:2] == "p_"]
        found.append(np.column_stack(values))
    return found


def together(folder: Path, target: str, place: Path, **rules: Any) -> tuple[Any, Any]:
    rows = Dataset.open(str(folder / target))
    told = {"several": {"teachers": teachers(folder, target)} | rules}
    brought = bring("several", rows, Options.model_validate(told))
    assert brought is not None
    brought.write(str(place))
    model = load_model(str(place))
    assert model.digest == brought.predictor.digest
    said = model.answers(decode_features(next(rows.iter_blocks()), model.layout))
    values = [value for name, value in said.items() if target == "price" or name[:2] == "p_"]
    return np.column_stack(values), brought


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shares", [[], [3.0, 1.0]], ids=["alike", "weighted"])
def test_an_average_is_that_of_what_each_says(
    target: str, shares: list[float], folder: Path, tmp_path: Path
) -> None:
    found, brought = together(folder, target, tmp_path / "model", shares=shares)
    each = answers(folder, target, Dataset.open(str(folder / target)))
    weights = np.array(shares or [1.0, 1.0])
    expected = np.tensordot(weights / weights.sum(), np.stack(each), axes=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    first = next(note for note in brought.notes if "teachers" in note)
    if target == "price":
        spread = np.stack([one[:256] for one in each]).std(axis=0).mean()
        assert first.endswith(f"standard deviation of {spread:.3g}")
    else:
        split = (each[0][:256].argmax(axis=1) != each[1][:256].argmax(axis=1)).mean()
        assert f"different classes on {split:.1%}" in first


@pytest.mark.parametrize("target", TARGETS[:2])
def test_the_surest_teacher_answers(target: str, folder: Path, tmp_path: Path) -> None:
    found, _ = together(folder, target, tmp_path / "model", combine="confidence")
    each = np.stack(answers(folder, target, Dataset.open(str(folder / target))))
    surest = each.max(axis=2).argmax(axis=0)
    assert 0 < surest.mean() < 1
    expected = each[surest, np.arange(len(surest))]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_column_names_the_teacher(target: str, folder: Path, tmp_path: Path) -> None:
    rules = {"combine": "route", "column": "shop", "routes": {"b": 1}}
    found, _ = together(folder, target, tmp_path / "model", **rules)
    first, second = answers(folder, target, Dataset.open(str(folder / target)))
    expected = np.where((table()["shop"] == "b").to_numpy()[:, None], second, first)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_route_that_no_label_takes_is_told(folder: Path, tmp_path: Path) -> None:
    rules = {"combine": "route", "column": "shop", "routes": {"b": 1, "B": 1}}
    _, brought = together(folder, "label", tmp_path / "model", **rules)
    assert "'B' in routes is no label of 'shop': known: a, b, c" in brought.notes[0]


@pytest.mark.parametrize("combine", ["average", "route"])
def test_a_teacher_behind_an_address_is_asked_about_its_rows_and_keeps_its_budget(
    combine: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = table().dropna(subset="amount").head(60).reset_index(drop=True)
    rows = dataset(tmp_path / "rows", rows=frame)
    rules: dict[str, Any] = {"combine": combine}
    if combine == "route":
        rules |= {"column": "shop", "routes": {"b": 1}}
    with language_model() as server:
        asked = {
            "model": "small",
            "prompt": "Amount {amount:.4f} at {shop}?",
            "words": {"bad": ["yes"], "ok": ["no"]},
            "price_per_row": 0.01,
            "budget": 0.62,
        }
        members = [teachers(folder, "label")[0], {"source": server.url, "endpoint": asked}]
        told = {"several": {"teachers": members} | rules}
        brought = bring("several", rows, Options.model_validate(told))
        assert brought is not None
        brought.write(str(tmp_path / "model"))
        server.prompts.clear()
        model = load_model(str(tmp_path / "model"), trust=[server.url.partition("/v1")[0]])
        assert model.remote
        capsys.readouterr()
        if combine == "average":
            with pytest.raises(Refused, match="60 rows cost about 0.64, more than 0.62"):
                label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
            assert server.prompts == []
        else:
            label([TeacherCopy(model)], rows, str(tmp_path / "labelled"))
            assert len(server.prompts) == (frame["shop"] == "b").sum() + 4
        assert "60 rows costs 0.64 at most" in capsys.readouterr().out
        assert running_costs({"m": model}, batches=(1, 1024))["m"].latency[1024] > 0
        assert len(server.prompts) < 70


@pytest.mark.parametrize(
    ("target", "rules", "said"),
    [
        ("label", {"teachers": []}, "name at least two"),
        ("label", {"shares": [1.0]}, "give 2 weights"),
        ("label", {"shares": [0.0, 0.0]}, "give 2 weights"),
        ("label", {"shares": [float("nan"), 1.0]}, "give 2 weights"),
        ("label", {"shares": [float("inf"), 1.0]}, "give 2 weights"),
        ("label", {"shares": [1.0, 1.0], "combine": "confidence"}, "only an average has weights"),
        ("price", {"combine": "confidence"}, "values have no confidence"),
        ("label", {"weigh": "agreement", "shares": [0.0, 2.0]}, "give another one some"),
        (
            "label",
            {"weigh": "agreement", "combine": "route", "routes": {"a": 2}},
            r"(?s)a column goes with.*must be below 2.*has one teacher there",
        ),
        ("label", {"combine": "route"}, "a column goes with"),
        ("label", {"column": "shop"}, "a column goes with"),
        ("label", {"combine": "route", "column": "shpo"}, "did you mean 'shop'"),
        ("label", {"combine": "route", "column": "amount"}, "holds no labels"),
        ("label", {"combine": "route", "column": "shop", "routes": {"a": 2}}, "must be below 2"),
    ],
)
def test_rules_that_do_not_suit_are_refused(
    target: str, rules: dict[str, Any], said: str, folder: Path
) -> None:
    told = {"several": {"teachers": teachers(folder, target)} | rules}
    rows = Dataset.open(str(folder / target))
    with pytest.raises(InvalidInput, match=said):
        bring("several", rows, Options.model_validate(told))


def test_what_is_wrong_with_a_teacher_says_with_which(folder: Path) -> None:
    first, second = teachers(folder, "label")
    told = {"several": {"teachers": [first | {"classes": ["ok"]}, second | {"input": []}]}}
    rows = Dataset.open(str(folder / "label"))
    with pytest.raises(InvalidInput) as caught:
        bring("several", rows, Options.model_validate(told))
    assert "several.teachers[0].classes" in str(caught.value)
    assert "several.teachers[1].input" in str(caught.value)
    other = {"several": {"teachers": [first, first | {"source": "several"}]}}
    with pytest.raises(InvalidInput, match="name one model"):
        bring("several", rows, Options.model_validate(other))
    with pytest.raises(InvalidInput, match="goes with the source 'several'"):
        bring(first["source"], rows, Options.model_validate(told | {"classes": ["bad", "ok"]}))


def test_a_damaged_file_of_several_is_refused(folder: Path, tmp_path: Path) -> None:
    together(folder, "label", tmp_path / "model")
    content = (tmp_path / "model" / "model.zip").read_bytes()
    files = unpack(content, "model")
    short = {name: one for name, one in files.items() if not name.startswith("1/")}
    for bad in (
        content[:-30],
        pack(short),
        pack(files | {"several.json": files["several.json"][:-1] + b',"spread":[1.0]}'}),
        pack(files | {"../evil": b""}),
        pack(files | {"2/../../evil": b""}),
        pack({name: one for name, one in files.items() if name != "several.json"}),
    ):
        with pytest.raises((CorruptData, InvalidInput)):
            Several.load(bad, (), "cpu")
    assert not (tmp_path / "evil").exists()


def weigh(each: np.ndarray, shares: list[float], classes: bool) -> np.ndarray:
    """Return the agreement of teachers who say `each` [M, N, K], in the words of the papers."""
    part = np.array(shares) / np.sum(shares)
    mean = np.tensordot(part, each, axes=1)
    if not classes:
        scale = mean[:256].var(axis=0)  # of the rows tried
        apart = np.tensordot(part, (each - mean) ** 2, axes=1)
        return (scale / (scale + apart))[:, 0]
    divergence = entropy(mean, axis=1) - part @ entropy(each, axis=2)
    return 1 - divergence / min(entropy(part), np.log(each.shape[2]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shares", [[1.0, 1.0], [3.0, 1.0]], ids=["alike", "weighted"])
@pytest.mark.parametrize("own", [False, True], ids=["", "own"])
def test_rows_weigh_what_teachers_agree(
    target: str,
    shares: list[float],
    own: bool,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, brought = together(folder, target, tmp_path / "model", shares=shares, weigh="agreement")
    rows = Dataset.open(str(folder / target))
    each = np.stack(answers(folder, target, rows)).astype(np.float64)
    expected = weigh(each, shares, target != "price")
    if target != "price" and shares == [1.0, 1.0]:
        far = jensenshannon(*each, axis=1) ** 2  # pyright: ignore[reportCallIssue]
        np.testing.assert_allclose(expected, 1 - far / np.log(2), atol=1e-6)
    said = f"rows weigh {expected[:256].mean():.3f}, at least {expected[:256].min():.3f}"
    assert said in brought.notes[0]
    if own:
        rows = with_weights(rows, tmp_path / "own")
        expected = expected * (1 + np.arange(600) % 3)
    model = LocalArtifact(str(tmp_path / "model"), metadata={"kind": "model"})
    given = LocalArtifact(rows.root, metadata={"kind": "dataset"})
    labelled = LocalArtifact(str(tmp_path / "labelled"))
    capsys.readouterr()
    label_with_teacher(model=model, dataset=given, labelled=labelled)
    made = Dataset.open(labelled.path)
    weights = made.weights()
    assert weights is not None
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    assert weights.max() > 1.01 * weights.min()
    assert "600 rows weighed by agreement" in capsys.readouterr().out
    assert made.schema.weight == Column(name="teacher_weight", kind="numeric", role="weight")
    assert "count" not in made.schema.names
    # Who labels those again would keep what the first ones agreed.
    with pytest.raises(InvalidInput, match="weighed these rows before"):
        label_with_teacher(model=model, dataset=labelled, labelled=given)


def test_values_that_never_change_have_no_scale(folder: Path, tmp_path: Path) -> None:
    alike = dataset(tmp_path / "rows", "price", pd.concat([table().iloc[[1]]] * 9))
    told = {"several": {"teachers": teachers(folder, "price"), "weigh": "agreement"}}
    with pytest.raises(InvalidInput, match=r"several\.weigh.*the same for all 9 rows tried"):
        bring("several", alike, Options.model_validate(told))


def with_weights(rows: Dataset, folder: Path) -> Dataset:
    """Write the rows with weights 1, 2, 3, 1, ... in the middle of the columns."""
    weight = Column(name="count", kind="numeric", role="weight")
    columns = (rows.schema.columns[0], weight, *rows.schema.columns[1:])
    with DatasetWriter(str(folder), replace(rows.schema, columns=columns), provenance={}) as writer:
        writer.write(rows.to_pandas().assign(count=1.0 + np.arange(rows.rows) % 3))
    return writer.dataset


@pytest.mark.parametrize("target", ["label", "price"])
def test_weights_do_not_depend_on_shards_and_reach_a_student(
    target: str, folder: Path, tmp_path: Path
) -> None:
    _, _ = together(folder, target, tmp_path / "model", weigh="agreement")
    model = LocalArtifact(str(tmp_path / "model"), metadata={"kind": "model"})
    given = LocalArtifact(str(folder / target), metadata={"kind": "dataset"})

    def made(shard: int, shards: int) -> Dataset:
        out = LocalArtifact(str(tmp_path / f"{shard} of {shards}"))
        more: dict[str, Any] = {"method": "mixup", "rows": 9000, "shard": shard, "shards": shards}
        label_with_teacher(model=model, dataset=given, labelled=out, **more)
        return Dataset.open(out.path)

    whole = made(0, 1)
    together_again = gather([made(0, 2), made(1, 2)], str(tmp_path / "both"), provenance={})
    assert together_again.rows == 9600
    assert together_again.fingerprint == whole.fingerprint

    def student(rows: Dataset, name: str) -> bytes:
        ports = ("model", "ledger", "metrics", "report", "summary")
        out: dict[str, Any] = {one: LocalArtifact(str(tmp_path / name / one)) for one in ports}
        learned = LocalArtifact(rows.root, metadata={"kind": "dataset"})
        told: dict[str, Any] = {"steps": 20, "batch_size": 64, "network_args": {"hidden": [8]}}
        told |= {"checkpoint_uri": str(tmp_path / name / "store")}
        train_student(dataset=learned, validation=given, **told, **out)
        return (tmp_path / name / "model" / "model.safetensors").read_bytes()

    # A student learns what it would from a column of weights that a user wrote, in any unit, and
    # not what it learns from the same answers without.
    names = {"teacher_weight": "mine"}
    columns = [replace(c, name=names.get(c.name, c.name)) for c in whole.schema.columns]
    by_hand, alike = (replace(whole.schema, columns=tuple(columns)), 4.0), (whole.schema, 0.0)
    written: list[Dataset] = []
    for number, (schema, scale) in enumerate((by_hand, alike)):
        frame = whole.to_pandas()
        frame["mine"] = scale * frame["teacher_weight"]
        frame["teacher_weight"] = 1.0
        with DatasetWriter(str(tmp_path / str(number)), schema, provenance={}) as writer:
            writer.write(frame[list(schema.names)])
        written.append(writer.dataset)
    weighed = student(whole, "weighed")
    assert weighed == student(written[0], "by hand")
    assert weighed != student(written[1], "alike")
