"""Fields [B, C, H, W] of any rank, into a network and out of it, as its contract says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from model_samples import make_model

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.build import Shaped
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.models.predict import Predictor

PLANES, FIELDS = "own_networks:Planes", "own_networks:Fields"


def schema(*features: tuple[int, ...], target: tuple[int, ...]) -> Schema:
    given = [
        Column(name=f"f{n}", kind="tensor" if shape else "numeric", shape=shape)
        for n, shape in enumerate(features)
    ]
    wanted = Column(name="u", kind="tensor", role="target", shape=target)
    return Schema(columns=(*given, wanted), task="regression")


def table(of: Schema, rows: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    drawn = {c.name: rng.normal(3.0, 2.0, (rows, *c.shape)) for c in of.features}
    return pd.DataFrame({name: list(values) for name, values in drawn.items()})


def model_of(of: Schema, network: str, reads: str = "", **arguments: Any) -> Model:
    return make_model(of, table(of), network=network, network_reads=reads, network_args=arguments)


@pytest.mark.parametrize(
    ("features", "target", "network", "reads", "arguments", "seen"),
    [
        pytest.param([(3, 5, 4)], (2, 5, 4), PLANES, "", {}, (3, 5, 4), id="declared"),
        pytest.param([(5, 4)], (5, 4), PLANES, "", {}, (1, 5, 4), id="one channel, and out"),
        pytest.param([(5, 4)], (5, 4), PLANES, "", {"drop": True}, (1, 5, 4), id="none out"),
        pytest.param([(1, 5, 4)], (1, 5, 4), PLANES, "", {}, (1, 5, 4), id="a channel of 1"),
        pytest.param([(5, 4), (2, 5, 4)], (5, 4), PLANES, "", {}, (3, 5, 4), id="joined"),
        pytest.param([(3, 5, 4)], (2, 5, 4), FIELDS, "2d", {}, (3, 5, 4), id="by the setting"),
        pytest.param(
            [(3, 5, 4)], (2, 5, 4), FIELDS, "", {"out_channels": 2}, (3, 5, 4), id="by the data"
        ),
        pytest.param([(7,)], (2, 7), FIELDS, "1d", {"dimensions": 1}, (1, 7), id="1d"),
        pytest.param(
            [(2, 3, 4, 5)], (3, 4, 5), FIELDS, "3d", {"dimensions": 3}, (2, 3, 4, 5), id="3d"
        ),
        pytest.param([(), ()], (5, 4), "own_networks:Rise", "", {}, (2,), id="rows to a field"),
        pytest.param([(5, 4)], (5, 4), "own_networks:Rise", "rows", {}, (20,), id="flat in"),
    ],
)
def test_a_network_gets_what_its_contract_says(
    features: list[tuple[int, ...]],
    target: tuple[int, ...],
    network: str,
    reads: str,
    arguments: dict[str, Any],
    seen: tuple[int, ...],
    tmp_path: Path,
) -> None:
    of = schema(*features, target=target)
    model = model_of(of, network, reads, **arguments)
    got: list[torch.Tensor] = []
    assert isinstance(model.network, Shaped)
    model.network.network.register_forward_pre_hook(lambda _, given: got.extend(given))
    raw = decode_features(table(of), RawLayout(of))
    outputs = model(torch.from_numpy(raw))
    assert got[0].shape == (6, *seen)
    # Channels are the features in order: by numpy, of what the table holds.
    drawn = [np.stack(table(of)[c.name].to_list()).reshape(6, -1, *seen[1:]) for c in of.features]
    scaled = np.concatenate(drawn, axis=1).reshape(6, -1)
    raw_given = got[0].reshape(6, -1) / model.encoder.scale + model.encoder.mean
    np.testing.assert_allclose(raw_given, scaled, rtol=1e-5, atol=1e-5)
    assert outputs.shape == (6, int(np.prod(target)))
    export_model(model, str(tmp_path))
    loaded = load_model(str(tmp_path), trust=("own_networks",))
    fields = loaded.fields(table(of))
    assert fields.shape == (6, *target)
    np.testing.assert_array_equal(fields.reshape(6, -1), outputs.detach())


def test_fields_come_out_in_their_shape_whatever_they_went_in_as() -> None:
    of = schema((3, 5, 4), target=(2, 5, 4))
    predictor = Predictor(model_of(of, PLANES))
    frame = table(of).set_index(pd.Index(range(10, 16), name="place"))
    given = np.stack(frame["f0"].to_list())
    fields = predictor.fields(given)
    arrow = pa.table({"f0": pa.FixedShapeTensorArray.from_numpy_ndarray(given)})
    nested = pa.table({"f0": pa.array(given.tolist())})
    for other in (arrow, nested, frame):
        np.testing.assert_array_equal(predictor.fields(other), fields)
    cells = predictor(frame)
    assert list(cells.columns) == ["prediction"]
    assert cells.index.equals(frame.index)
    np.testing.assert_array_equal(np.stack(cells["prediction"].to_list()), fields)
    assert predictor.fields(given[:0]).shape == (0, 2, 5, 4)
    with pytest.raises(InvalidInput, match=r"the model reads \[N, 3, 5, 4\]"):
        predictor.fields(given.swapaxes(2, 3))


def test_numbers_and_classes_are_plain_arrays() -> None:
    of = Schema(
        columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric", role="target")),
        task="regression",
    )
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0]})
    predictor = Predictor(make_model(of, frame))
    assert predictor.fields(frame).shape == (3,)
    np.testing.assert_array_equal(predictor.fields(np.array([1, 2, 3])), predictor.fields(frame))
    with pytest.raises(InvalidInput, match="one column each for x, in this order"):
        predictor.fields(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("features", "network", "reads", "arguments", "hint"),
    [
        ([(5, 4)], FIELDS, "3d", {}, "one grid of 3 dimensions"),
        ([(5, 4), (4, 5)], PLANES, "", {}, "f0 [5, 4], f1 [4, 5]"),
        ([(5, 4), ()], PLANES, "", {}, "all tensors"),
        ([(5, 4), (5, 4)], FIELDS, "tensor", {}, "a single feature"),
        ([(5, 4)], FIELDS, "2D", {}, "did you mean '2d'"),
        ([(5, 4)], FIELDS, "", {}, "set network_reads to one of rows, ids, tensor, 1d, 2d, 3d"),
        ([(5, 4)], "own_networks:Sides", "", {}, "expected [3, 20] or [3, 5, 4] or [3, 1, 5, 4]"),
        ([(5, 4)], "own_networks:Tied", "", {}, "failed on a batch of shape [3, 5, 4]"),
    ],
)
def test_what_does_not_fit_is_refused(
    features: list[tuple[int, ...]], network: str, reads: str, arguments: Any, hint: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        model_of(schema(*features, target=(5, 4)), network, reads, **arguments)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("feature", "target", "network", "reads", "prefix"),
    [
        ((5, 4), (3,), "own_networks:Tied", "rows", "network."),
        ((20,), (3,), "own_networks:Lazy", "", "network.network."),
        ((5, 4), (3,), "own_networks:Rows", "", "network.network."),
        ((16,), (16,), "fno", "", "network."),
        ((5, 4), (5, 4), "mlp", "", "network."),
    ],
)
def test_models_of_earlier_versions_read_what_they_read_then(
    feature: tuple[int, ...], target: tuple[int, ...], network: str, reads: str, prefix: str
) -> None:
    """Until contracts were kept, networks that name `in_features` got rows, others the tensor."""
    given = {"modes": 4, "channels": 4} if network == "fno" else {}
    model = model_of(schema(feature, target=target), network, reads, **given)
    form = model.spec.to_json()
    del form["network"]["reads"]
    if network == "fno":
        del form["network"]["args"]["input_shape"]
    weights = {
        prefix + name.removeprefix("network.").removeprefix("network."): tensor
        for name, tensor in model.state_dict().items()
    }
    older = Model.from_spec(ModelSpec.from_json(form), trust=("own_networks",), weights=weights)
    older.load_state_dict(weights)
    raw = torch.randn(2, int(np.prod(feature)))
    assert torch.equal(older.eval()(raw), model(raw))


@pytest.mark.parametrize("reads", [[4, 4], "2d", [1, -20], {}])
def test_a_spec_with_another_contract_is_corrupt(reads: Any) -> None:
    form = model_of(schema((5, 4), target=(5, 4)), PLANES).spec.to_json()
    form["network"]["reads"] = reads
    with pytest.raises(CorruptData):
        Model.from_spec(ModelSpec.from_json(form), trust=("own_networks",))
