"""Models that read text: the same answers in every form, after export, and from teachers."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.datasets.schema import Column, Schema, TextForm
from kubestill.runtime.datasets.text import text_rows
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.evaluation.profile import profile_of
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.embed import Bag
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.foreign.bring import bring
from kubestill.runtime.models.foreign.match import Options
from kubestill.runtime.models.foreign.runtime import Block
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.serve import TOKENIZER_FILE, add_serving_file
from kubestill.runtime.sanity.rows import check_features, with_words
from kubestill.runtime.serving.protocol import read_arrow, read_request
from kubestill.runtime.serving.source import ModelSource

WORDS = "the parcel came late broken early whole again and never thank you a pity joy".split()
GOOD = {"early", "whole", "thank", "joy"}
FORM = TextForm(words=(1, 2), chars=(3, 3), length=24)
ARGS = {"text_buckets": 300, "text_dim": 5, "hidden": [8]}
SMALL = {"text_buckets": 300, "width": 8, "layers": 1, "heads": 2, "dropout": 0.0}
"""A transformer."""


def texts(rows: int = 120) -> list[str]:
    dice = random.Random(0)
    return [" ".join(dice.choices(WORDS, k=dice.randrange(1, 9))) for _ in range(rows)]


def frame() -> pd.DataFrame:
    made = texts()
    mood = ["good" if GOOD & set(text.split()) else "bad" for text in made]
    rows = pd.DataFrame({"size": np.arange(120.0), "body": made, "city": "x", "mood": mood})
    rows["city"] = [f"city{n % 20:02}" for n in range(120)]
    rows["body"] = rows["body"].astype(object)
    rows.loc[3, "body"] = None
    return rows


SCHEMA = Schema(
    columns=(
        Column(name="body", kind="text", text=FORM),
        Column(name="size", kind="numeric"),
        Column(name="city", kind="categorical", categories=tuple(f"city{n:02}" for n in range(20))),
        Column(name="mood", kind="categorical", role="target", categories=("bad", "good")),
    ),
    task="binary",
)


def make(schema: Schema = SCHEMA, network: str = "mlp", **args: Any) -> Model:
    layout = RawLayout(schema)
    encoder = Encoder.fit([decode_features(frame(), layout)], layout)
    given = {**(SMALL if network == "transformer" else ARGS), **args}
    return Model.create(
        schema, encoder=encoder, decoder=Decoder(), network=network, network_args=given
    ).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with DatasetWriter(str(tmp_path_factory.mktemp("rows")), SCHEMA) as writer:
        writer.write(frame())
    return writer.dataset


def test_every_form_of_rows_gives_the_same_answers(tmp_path: Path, dataset: Dataset) -> None:
    export_model(make(), str(tmp_path))
    model = load_model(str(tmp_path))
    rows = frame().drop(columns="mood")
    records = [
        {k: None if v != v else v for k, v in row.items()} for row in rows.to_dict("records")
    ]
    wanted = model(rows)["p_good"].tolist()
    assert model(pa.Table.from_pandas(rows))["p_good"].to_pylist() == wanted
    assert [row["p_good"] for row in model(records)] == wanted
    columns = {name: [row[name] for row in records] for name in rows}
    assert model(columns)["p_good"] == wanted
    assert model(rows[list(model.columns)].to_numpy())["p_good"].tolist() == wanted
    raw = decode_features(dataset, model.layout)
    assert model.answers(raw)["p_good"].tolist() == wanted
    one = model(records[5])
    assert one["p_good"] == pytest.approx(wanted[5], rel=1e-6)
    assert model(rows.iloc[5])["p_good"] == one["p_good"]
    assert make().spec.to_json() == {**model.spec.to_json(), "digest": None}


@pytest.mark.parametrize("network", ["mlp", "tabm", "resmlp", "siren", "fourier", "transformer"])
def test_every_network_reads_text_beside_other_columns(network: str, tmp_path: Path) -> None:
    args = {"hidden": None} if network == "resmlp" else {}
    given = {**(SMALL if network == "transformer" else ARGS), **args}
    model = Model.create(
        SCHEMA,
        encoder=make().encoder,
        decoder=Decoder(),
        network=network,
        network_args={name: value for name, value in given.items() if value is not None},
    )
    export_model(model, str(tmp_path))
    found = load_model(str(tmp_path))
    assert found.spec.network["args"]["text_buckets"] == 300
    changed = frame().assign(body="thank you")
    assert not np.allclose(found(frame())["p_good"], found(changed)["p_good"])


def test_a_bag_is_the_sum_over_the_root_of_the_number() -> None:
    torch.manual_seed(0)
    bag = Bag(50, 4)
    raw = text_rows(pa.array([*texts(40), "", None]), FORM)
    ids = torch.from_numpy(raw + 1).nan_to_num(0).long()
    for row, found in zip(raw, bag(ids), strict=True):
        places = [int(one) % 50 + 1 for one in row if one >= 0]
        expected = 16 * bag.weight[places].sum(0) / max(len(places), 1) ** 0.5
        torch.testing.assert_close(found, expected)
    # Torch's own embedding is what the gradient is held against.
    bag(ids).square().sum().backward()
    own = bag.weight.detach().clone().requires_grad_()
    places = torch.where(ids > 0, (ids - 1) % 50 + 1, 0)
    summed = (F.embedding(places, own) * (ids > 0)[:, :, None]).sum(1)
    (16 * summed / (ids > 0).sum(1, keepdim=True).clamp(min=1).sqrt()).square().sum().backward()
    torch.testing.assert_close(bag.weight.grad, own.grad)


def test_a_transformer_sees_the_order_and_nothing_behind_the_end() -> None:
    model = make(network="transformer", layers=2)
    grams = model.network.get_submodule("grams")
    with torch.no_grad():  # embeddings begin near nothing, and what follows them could not matter
        grams.get_parameter("weight").normal_()
    rows = frame().assign(size=1.0, city="city01")
    made = lambda *bodies: rows.iloc[: len(bodies)].assign(body=list(bodies))  # noqa: E731
    long = "pity " + "joy " * 30
    alone = Predictor(model)(made("never late"))["p_good"][0]
    found = Predictor(model)(made("never late", "late never", long, "", None))["p_good"].tolist()
    assert found[0] == pytest.approx(alone, abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-4
    assert found[3] == pytest.approx(found[4], abs=1e-6)
    assert make(network="transformer").spec.network["reads"] == "ids"


def test_a_transformer_without_text_is_refused() -> None:
    columns = tuple(column for column in SCHEMA.columns if column.kind != "text")
    with pytest.raises(InvalidInput, match="no column is; import one with kinds"):
        make(Schema(columns=columns, task="binary"), network="transformer")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"network": "transformer", "heads": 3}, "network_args.width = 8: must be a multiple"),
        ({"text_buckets": 0}, "network_args.text_buckets = 0: give a whole number from 1"),
        ({"text_dim": 2.5}, "network_args.text_dim = 2.5"),
        ({"text_dims": 8}, "text_dims"),
    ],
)
def test_arguments_that_cannot_work_are_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(**args)
    assert said in str(caught.value)


@pytest.mark.parametrize("body", [3, 2.5, True, ["a"], b"bytes"])
def test_what_is_no_text_is_refused(body: Any) -> None:
    with pytest.raises(InvalidInput, match="not text"):
        Predictor(make())([{"body": body, "size": 1.0, "city": "city01"}])


def test_a_server_takes_the_text(tmp_path: Path) -> None:
    folder = exported(make(), tmp_path)
    source = ModelSource(folder)
    served = source.load(source.find())
    rows = frame().drop(columns="mood")
    model = load_model(folder)
    wanted = model(rows)["p_good"]
    body = {
        "inputs": [
            {"name": name, "datatype": kind, "shape": [len(rows)], "data": values}
            for name, kind, values in (
                ("body", "BYTES", [one or None for one in rows["body"]]),
                ("size", "FP64", rows["size"].tolist()),
                ("city", "BYTES", rows["city"].tolist()),
            )
        ]
    }
    given = read_request(json.dumps(body).encode(), served)
    np.testing.assert_array_equal(served.predictor.answers(given.raw)["p_good"], wanted)
    table, sink = pa.Table.from_pandas(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    given = read_arrow(sink.getvalue(), served)
    np.testing.assert_array_equal(served.predictor.answers(given.raw)["p_good"], wanted)
    told = next(one.to_json() for one in served.signature.inputs if one.name == "body")
    assert (told["datatype"], told["shape"], told["parameters"]) == ("BYTES", [-1], {"missing": ""})


def test_the_gate_sees_words_and_no_hashes() -> None:
    encoder = make().encoder
    raw = torch.from_numpy(decode_features(frame(), RawLayout(SCHEMA)))
    features = encoder(raw)
    assert check_features(features, encoder).status in ("ok", "note")
    seen = with_words(features.numpy(), encoder)
    different = len(np.unique(features.numpy()[:, 2:])) - 1
    assert seen.shape == (120, 1 + min(different, 256) + 1)
    np.testing.assert_array_equal(seen[:, [0, -1]], features.numpy()[:, [0, 1]])
    joy = text_rows(pa.array(["joy"]), TextForm(words=(1, 1), length=1))[0, 0] + 1
    there = frame()["body"].fillna("").str.split().map(lambda words: "joy" in words)
    has = (features.numpy()[:, 2:] == joy).any(1)  # unless it was cut off
    assert has.sum() > there.sum() / 2
    assert any(np.array_equal(column, has) for column in seen[:, 1:-1].T)


def test_profiles_compare_the_length_of_texts(dataset: Dataset) -> None:
    found = profile_of(dataset).columns["length of body"]
    assert (found.rows, found.missing) == (120, 1)
    assert found.quantiles[-1] == frame()["body"].str.len().max()


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_onnx_takes_the_ids_that_the_tokenizer_describes(
    network: str, dataset: Dataset, tmp_path: Path
) -> None:
    onnxruntime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_model(make(network=network), str(tmp_path))
    add_serving_file(str(tmp_path), "onnx")
    told = json.loads((tmp_path / TOKENIZER_FILE).read_text())["body"]
    form = TextForm(words=tuple(told["words"]), chars=tuple(told["chars"]), length=told["length"])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    rows = frame()
    ids = text_rows(pa.array(rows["body"].fillna("")), form).astype(np.int64)
    feeds = {"body": ids, "size": rows["size"].to_numpy(), "city": rows["city"].to_numpy()}
    label, chances = session.run(None, feeds)
    wanted = load_model(str(tmp_path))(rows)
    np.testing.assert_allclose(chances, wanted[["p_bad", "p_good"]], atol=1e-6)
    assert label.tolist() == wanted["prediction"].tolist()
    request = json.loads((tmp_path / "request.json").read_text())
    body = next(one for one in request["inputs"] if one["name"] == "body")
    assert (body["datatype"], body["shape"], set(body["data"])) == ("INT64", [1, 24], {-1})
    # As a model that is brought in; a missing text has no ids on any processor.
    brought = bring(str(tmp_path / "model.onnx"), dataset, Options())
    assert brought
    again = brought.predictor(rows)[["p_bad", "p_good"]]
    np.testing.assert_allclose(again, wanted[["p_bad", "p_good"]], atol=1e-6)
    block = Block(decode_features(rows, brought.predictor.layout), brought.predictor.layout, ())
    assert set(block.ids("body")[3]) == {-1}


def test_a_teacher_gets_the_text_itself(dataset: Dataset, tmp_path: Path) -> None:
    brought = bring("foreign_teachers:Moods", dataset, Options())
    assert brought is not None
    brought.write(str(tmp_path / "model"))
    teacher = load_model(str(tmp_path / "model"), trust=("foreign_teachers",))
    found = label([TeacherCopy(teacher)], dataset, str(tmp_path / "soft")).to_pandas()
    good = [isinstance(one, str) and bool(GOOD & set(one.split())) for one in frame()["body"]]
    assert [logit[0] for logit in found["teacher_logits"]] == [2.0 if one else -2.0 for one in good]
    student = load_model(exported(make(), tmp_path / "student"))
    soft = Dataset.open(str(tmp_path / "soft"))
    np.testing.assert_array_equal(
        decode_features(soft, student.layout), decode_features(dataset, student.layout)
    )


def exported(model: Model, folder: Path) -> str:
    export_model(model, str(folder))
    return str(folder)


def test_a_model_of_numbers_does_not_read_text(dataset: Dataset, tmp_path: Path) -> None:
    lightgbm: Any = pytest.importorskip("lightgbm")
    rows = np.random.default_rng(0).random((60, 1))
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1}, lightgbm.Dataset(rows, rows[:, 0] > 0.5), 2
    )
    booster.save_model(str(tmp_path / "m.txt"))
    with pytest.raises(InvalidInput, match="this is text; bring in the whole pipeline"):
        bring(str(tmp_path / "m.txt"), dataset, Options(inputs=["body"], classes=["bad", "good"]))
