"""int8 ONNX: loads in ONNX Runtime, stays close to the network, and is a model like any other."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from model_samples import image_schema, images, make_model, mixed_frame, mixed_schema
from sklearn.datasets import load_digits

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.writer import DatasetWriter
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.quantised import SCHEMES, quantisable, quantise_onnx
from kubestill.runtime.models.serve import export_onnx
from kubestill.runtime.steps.continuous_eval import continuous_eval
from kubestill.runtime.steps.quantise_model import quantise_model
from kubestill.runtime.steps.train_student import train_student

CLASSES = tuple(map(str, range(10)))
DIGITS = Schema(
    columns=(
        Column(name="pixels", kind="tensor", shape=(64,)),
        Column(name="digit", kind="categorical", role="target", categories=CLASSES),
    ),
    task="multiclass",
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    """Real digits in two parts, and a student of 19,000 parameters that has learned one."""
    root = tmp_path_factory.mktemp("digits")
    pixels, labels = load_digits(return_X_y=True)
    made = {"root": LocalArtifact(str(root))}
    for name, part in (("rows", slice(None, 1100)), ("held", slice(1100, None))):
        with DatasetWriter(str(root / name), DIGITS) as writer:
            cells = pixels[part].astype(np.float32).tolist()
            writer.write(pd.DataFrame({"pixels": cells, "digit": labels[part].astype(str)}))
        made[name] = LocalArtifact(str(root / name), metadata={"kind": "dataset"})
    ports = ("model", "ledger", "metrics", "report", "summary")
    outputs: Any = {name: LocalArtifact(str(root / name)) for name in ports}
    train_student(
        dataset=made["rows"],
        **outputs,
        mode="hard",
        network_args={"hidden": [250]},
        steps=200,
        learning_rate=0.004,
        checkpoint_uri=str(root / "kept"),
        settings={"threads": 1},
    )
    return made | {"model": outputs["model"]}


def run(digits: dict[str, LocalArtifact], **options: Any) -> tuple[Any, dict[str, LocalArtifact]]:
    names = ("quantised", "metrics", "report", "summary", "record")
    outputs = {name: LocalArtifact(f"{digits['root'].path}/out/{name}") for name in names}
    given: Any = {
        "model": digits["model"],
        "calibration": digits["rows"],
        "dataset": digits["held"],
        **outputs,
        **options,
    }
    return quantise_model(**given), outputs


@pytest.fixture(scope="module")
def done(digits) -> tuple[Any, dict[str, LocalArtifact]]:
    return run(digits, tolerance=0.02)


def test_digits_lose_half_a_point_at_most_and_shrink_by_three(done) -> None:
    (_, reason), outputs = done
    record = read_record(outputs["record"])
    models = record["models"]
    assert models.keys() == {"int8 dynamic", "int8 static", "float32"}
    for scheme in SCHEMES:
        assert models[f"int8 {scheme}"]["gain"]["value"] >= -0.005
    assert record["times_smaller"] >= 3
    assert reason.startswith(record["chosen"])
    assert "<svg" in Path(outputs["report"].path).read_text()
    assert "int8 static" in Path(outputs["summary"].path).read_text()


def test_the_file_answers_in_its_own_runtime_as_the_model_does_here(digits, done) -> None:
    _, outputs = done
    session = onnxruntime.InferenceSession(f"{outputs['quantised'].path}/model.onnx")
    pixels = load_digits(return_X_y=True)[0][1100:].astype(np.float32)
    chances: Any = session.run(["probabilities"], {"pixels": pixels})[0]
    here = load_model(outputs["quantised"].path)
    rows = pd.DataFrame({"pixels": list(pixels)})
    answers = here(rows)
    np.testing.assert_allclose(chances, answers[[f"p_{name}" for name in CLASSES]], atol=1e-6)
    exact = load_model(digits["model"].path)(rows)
    same: Any = answers["prediction"] == exact["prediction"]
    assert same.mean() >= 0.98


def test_continuous_eval_judges_it_as_any_other_model(digits, done) -> None:
    _, outputs = done
    names = ("metrics", "report", "summary", "record")
    ports: Any = {name: LocalArtifact(outputs["quantised"].path + "-" + name) for name in names}
    quantised = LocalArtifact(outputs["quantised"].path, metadata=outputs["quantised"].metadata)
    decision, _ = continuous_eval(
        model=quantised, baseline=digits["model"], dataset=digits["held"], **ports
    )
    assert decision in ("insufficient", "reject")
    assert ports["metrics"].metadata["accuracy"] > 0.85


@pytest.fixture(scope="module")
def aware(digits) -> LocalArtifact:
    """The same student, with layers in 8 bits for the second half of its steps."""
    root = Path(digits["root"].path) / "aware"
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: Any = {name: LocalArtifact(str(root / name)) for name in names}
    train_student(
        dataset=digits["rows"],
        **ports,
        mode="hard",
        network_args={"hidden": [250]},
        steps=200,
        learning_rate=0.004,
        settings={"threads": 1, "quantise_aware": 0.5, "serving": "onnx"},
    )
    return ports["model"]


def test_a_student_that_learned_in_8_bits_stands_beside_those_quantised_after(
    digits, aware
) -> None:
    _, outputs = run(digits, model=aware, tolerance=0.02)
    record = read_record(outputs["record"])
    models = record["models"]
    assert models.keys() == {"int8 trained", "int8 dynamic", "int8 static", "float32"}
    assert models["int8 trained"]["gain"]["value"] >= -0.005
    assert models["float32"]["bytes"] > 3 * models["int8 trained"]["bytes"]
    assert "int8 trained" in Path(outputs["report"].path).read_text()
    _, outputs = run(digits, model=aware, scheme="trained", tolerance=0.02)
    assert read_record(outputs["record"])["chosen"] == "int8 trained"
    # Whole numbers in ONNX Runtime, and training's own arithmetic.
    pixels = load_digits(return_X_y=True)[0][1100:].astype(np.float32)
    rows = pd.DataFrame({"pixels": list(pixels)})
    here = load_model(aware.path)(rows)[[f"p_{name}" for name in CLASSES]].to_numpy()
    for path in (f"{outputs['quantised'].path}/model.onnx", f"{aware.path}/model.onnx"):
        session = onnxruntime.InferenceSession(path)
        found: Any = session.run(["probabilities"], {"pixels": pixels})[0]
        assert np.abs(found - here).max() < 1e-3


def test_convolutions_are_not_scaled_batch_by_batch_unless_asked(digits, tmp_path: Path) -> None:
    pixels = load_digits(return_X_y=True)[0][:200].astype(np.float32)
    frame = pd.DataFrame({"pixels": pixels.tolist()})
    model = make_model(DIGITS, frame, network="conv", network_args={"channels": [8]})
    export_model(model, str(tmp_path / "model"))
    given = LocalArtifact(str(tmp_path / "model"), metadata={"kind": "model"})
    _, outputs = run(digits, model=given)
    assert read_record(outputs["record"])["models"].keys() == {"int8 static", "float32"}
    assert "it convolves several times slower" in Path(outputs["summary"].path).read_text()


def test_only_a_model_that_learned_so_is_trained(digits) -> None:
    with pytest.raises(InvalidInput, match="has not learned in 8 bits.*settings.quantise_aware"):
        run(digits, scheme="trained")


def test_answers_are_not_rounded_and_far_columns_leave_the_others_their_values(
    tmp_path: Path,
) -> None:
    """What cost static int8 its average precision on payments."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(8, 1)).astype(np.float32)
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["logits"])],
            "theirs",
            [onnx.helper.make_tensor_value_info("x", 1, ["rows", 8])],
            [onnx.helper.make_tensor_value_info("logits", 1, ["rows", 1])],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    x = random.normal(size=(2000, 8)).astype(np.float32)
    x[:, 3] = random.standard_t(2, 2000) * 10  # reaches hundreds
    small = quantise_onnx(made.SerializeToString(), "static", [{"x": x}])
    found: Any = onnxruntime.InferenceSession(small).run(None, {"x": x})[0]
    near = np.abs(x[:, 3]) < 5
    assert len(np.unique(found)) > 1000
    assert np.abs(found - x @ weights)[near].mean() < 0.25


def exported(folder: Path, schema: Schema, frame: pd.DataFrame, **options: Any) -> bytes:
    export_onnx(make_model(schema, frame, **options), str(folder / "model.onnx"))
    return (folder / "model.onnx").read_bytes()


def batches(rows: int, seed: int, reach: float) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [{"image": np.float32(random.uniform(-reach, reach, (rows, 16)))} for _ in range(3)]


def test_int8_weights_are_the_networks_own_to_half_a_step(tmp_path: Path) -> None:
    model = make_model(image_schema(16), images(16), network_args={"hidden": [8]}, seed=3)
    export_onnx(model, str(tmp_path / "model.onnx"))
    content = (tmp_path / "model.onnx").read_bytes()
    layers = [one for name, one in model.network.state_dict().items() if one.ndim == 2]
    assert quantisable(content) == sum(one.numel() for one in layers) == 16 * 8 + 8 * 4
    found = onnx.load_model_from_string(quantise_onnx(content, "static", batches(64, 0, 1.0)))
    held = {one.name: onnx.numpy_helper.to_array(one) for one in found.graph.initializer}
    restored = [
        held[node.input[0]].astype(np.float64) * np.expand_dims(held[node.input[1]], 1 - axis)
        for node in found.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in held
        for axis in [next(one.i for one in node.attribute if one.name == "axis")]
        if held[node.input[0]].ndim == 2
    ]
    assert len(restored) == 2
    for ours, theirs in zip(layers, restored, strict=True):
        exact = ours.numpy() if ours.shape == theirs.shape else ours.numpy().T
        step = np.abs(exact).max() / 64  # the coarsest of its channels
        assert np.abs(exact - theirs).max() <= step / 2 * 1.001


def test_ranges_of_activations_are_those_of_the_calibration_rows(tmp_path: Path) -> None:
    content = exported(tmp_path, image_schema(16), images(16), network_args={"hidden": [8]})
    # What goes into the first layer, by a session of its own that ends there.
    model = onnx.load_model_from_string(content)
    entry = next(node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")).input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(entry, 1, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for reach in (1.0, 50.0):
        feeds = batches(64, 1, reach)
        made = onnx.load_model_from_string(quantise_onnx(content, "static", feeds))
        held = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
        scales = [float(held[n.input[1]]) for n in made.graph.node if n.op_type == "QuantizeLinear"]
        outputs: Any = [session.run([entry], one)[0] for one in feeds]
        seen = np.concatenate(outputs)
        spread = max(seen.max(), 0) - min(seen.min(), 0)
        assert any(scale == pytest.approx(spread / 255, rel=1e-4) for scale in scales)


@pytest.mark.parametrize(
    ("task", "network", "options"),
    [
        ("vector", "mlp", {"hidden": [64]}),
        # Its weights are stacks of matrices, one for each member.
        ("binary", "tabm", {"hidden": [32], "members": 2, "dropout": 0.0}),
        ("multiclass", "tabm", {"hidden": [32], "members": 2, "dropout": 0.0}),
    ],
)
def test_every_kind_of_column_goes_in_as_it_is(
    tmp_path: Path, task: str, network: str, options: dict[str, Any]
) -> None:
    frame = mixed_frame()
    frame.loc[0, ["area", "age"]] = (
        np.nan
    )  # in the first row they spoil what is measured of a batch
    options = {"network": network, "network_args": options}
    content = exported(tmp_path, mixed_schema(task), frame, **options)
    feeds = {
        "area": frame["area"].to_numpy(np.float64),
        "age": frame["age"].to_numpy(np.float64),
        "garden": frame["garden"].to_numpy(np.float64, na_value=np.nan),
        "colour": frame["colour"].fillna("").to_numpy(object),
        "city": frame["city"].fillna("").to_numpy(object),
    }
    name = "prediction" if task == "vector" else "probabilities"
    wanted: Any = onnxruntime.InferenceSession(content).run([name], feeds)[0]
    for scheme in SCHEMES:
        small = quantise_onnx(content, scheme, [feeds])
        found: Any = onnxruntime.InferenceSession(small).run([name], feeds)[0]
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 0.1 * np.ptp(wanted)


def test_an_onnx_file_of_another_package_is_quantised_as_well(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 1)).astype(np.float32)
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["logits"])],
            "theirs",
            [onnx.helper.make_tensor_value_info("x", 1, ["rows", 3])],
            [onnx.helper.make_tensor_value_info("logits", 1, ["rows", 1])],
            [onnx.numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    x = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    found: Any = onnxruntime.InferenceSession(
        quantise_onnx(made.SerializeToString(), "dynamic", [])
    ).run(None, {"x": x})[0]
    assert np.abs(found - x @ weights).max() < 0.05


def test_a_boosted_ensemble_is_no_network(digits, tmp_path: Path) -> None:
    import lightgbm

    from kubestill.runtime.datasets.manifest import Dataset
    from kubestill.runtime.models.foreign.bring import bring
    from kubestill.runtime.models.foreign.match import Options

    frame = pd.DataFrame({"a": np.arange(99.0), "y": np.where(np.arange(99) > 50, "no", "yes")})
    schema = Schema(
        columns=(
            Column(name="a", kind="numeric"),
            Column(name="y", kind="categorical", role="target", categories=("no", "yes")),
        ),
        task="binary",
    )
    for name in ("rows", "held"):
        with DatasetWriter(str(tmp_path / name), schema) as writer:
            writer.write(frame if name == "rows" else frame[::-1])
    given = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    rows = lightgbm.Dataset(frame.filter(["a"]), (frame["y"] == "yes").to_numpy())
    lightgbm.train(given, rows, 3).save_model(tmp_path / "m.txt")
    made = bring(
        str(tmp_path / "m.txt"),
        Dataset.open(str(tmp_path / "rows")),
        Options(classes=["no", "yes"]),
    )
    assert made
    made.write(str(tmp_path / "model"))
    parts = {
        name: LocalArtifact(str(tmp_path / name), metadata={"kind": kind})
        for name, kind in (("model", "model"), ("rows", "dataset"), ("held", "dataset"))
    }
    with pytest.raises(InvalidInput, match="'lightgbm': is no network"):
        run(digits, model=parts["model"], calibration=parts["rows"], dataset=parts["held"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scheme": "dynamik"}, "scheme = 'dynamik'.*did you mean 'dynamic'"),
        ({"calibration_rows": 0}, "calibration_rows = 0: must be 1 or more"),
        ({"tolerance": -1.0}, "tolerance = -1"),
        ({"metric": "rmse"}, "metric = 'rmse'"),
    ],
)
def test_bad_input_is_refused_in_words(digits, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        run(digits, **options)


def test_rows_that_set_the_ranges_do_not_judge(digits) -> None:
    with pytest.raises(InvalidInput, match="are the rows that the ranges are set by"):
        run(digits, dataset=digits["rows"])
