from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from model_samples import image_schema, images, make_model, mixed_frame, mixed_schema

import kubestill
from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.checkpoints.state import _NAMES  # pyright: ignore[reportPrivateUsage]
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.models.export import (
    Export,
    Incoming,
    copy_export,
    export_model,
    load_model,
)
from kubestill.runtime.models.identity import SPEC_FILE, TRAINING_FILE, WEIGHTS_FILE
from kubestill.runtime.models.model import Model, ModelSpec
from kubestill.runtime.stores import open_store

MODELS: dict[str, tuple[Any, ...]] = {
    "regression": (mixed_schema("regression"), mixed_frame(), {}),
    "vector": (mixed_schema("vector"), mixed_frame(), {}),
    "binary": (mixed_schema("binary"), mixed_frame(), {}),
    "multiclass": (mixed_schema("multiclass"), mixed_frame(), {}),
    "all options": (
        mixed_schema("binary"),
        mixed_frame(),
        {"network_args": {"hidden": [9, 9], "norm": "batch", "dropout": 0.1, "residual": True}},
    ),
    "image, mlp": (image_schema(8, 8), images(8, 8), {}),
    "image, conv": (image_schema(8, 8), images(8, 8), {"network": "own_networks:TinyConv"}),
    "colours, conv": (image_schema(3, 8, 8), images(3, 8, 8), {"network": "own_networks:TinyConv"}),
    "image, rows": (image_schema(6, 5), images(6, 5), {"network": "own_networks:Rows"}),
    "open-ended": (image_schema(3, 8, 8), images(3, 8, 8), {"network": "own_networks:open_ended"}),
    "lazy": (mixed_schema("binary"), mixed_frame(), {"network": "own_networks:Lazy"}),
    "tied": (mixed_schema("vector"), mixed_frame(), {"network": "own_networks:Tied"}),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    schema, frame, options = MODELS[request.param]
    return make_model(schema, frame, **options)


@pytest.fixture
def plain() -> Model:
    return make_model(mixed_schema("binary"), mixed_frame())


def raw_of(model: Model) -> np.ndarray:
    shape = model.spec.schema.features[0].shape
    frame = images(*shape) if shape else mixed_frame()
    return decode_features(frame, RawLayout(model.spec.schema))


@torch.no_grad()
def outputs(model: Model, raw: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(raw)).numpy()


def test_round_trip_is_bit_equal(model: Model, tmp_path: Path) -> None:
    export = export_model(model, str(tmp_path))
    predictor = kubestill.load_model(str(tmp_path))
    raw = raw_of(model)
    np.testing.assert_array_equal(predictor.logits(raw), outputs(model, raw))
    loaded = predictor.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert predictor.digest == export.digest
    assert predictor.spec == export.spec


def test_exporting_again_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    first = export_model(model, str(tmp_path / "a"))
    second = export_model(load_model(str(tmp_path / "a")).model, str(tmp_path / "b"))
    assert first.digest == second.digest
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_digest_covers_weights_and_preprocessing(plain: Model, tmp_path: Path) -> None:
    export = export_model(plain, str(tmp_path / "a"))
    other = make_model(mixed_schema("binary"), mixed_frame().assign(age=1.5))
    other.load_state_dict(_without_indicator(plain, other))
    changed = export_model(other, str(tmp_path / "b"))
    assert changed.digest != export.digest
    with torch.no_grad():
        next(plain.parameters()).add_(1e-6)
    heavier = export_model(plain, str(tmp_path / "c"))
    assert heavier.spec.digest != export.spec.digest
    assert heavier.digest != export.digest


def _without_indicator(plain: Model, other: Model) -> dict[str, torch.Tensor]:
    state = other.state_dict()
    return {k: v if v.shape == state[k].shape else state[k] for k, v in plain.state_dict().items()}


def test_spec_tells_how_rows_are_laid_out(plain: Model, tmp_path: Path) -> None:
    export_model(plain, str(tmp_path))
    spec = json.loads((tmp_path / "model.json").read_text())
    assert spec["format"] == "kubestill/model/1"
    assert spec["outputs"] == ["no", "yes"]
    assert spec["network"]["factory"] == "mlp"
    assert spec["layout"]["width"] == 5
    assert [column["start"] for column in spec["layout"]["columns"]] == [0, 1, 2, 3, 4]
    assert "soft" not in {column["role"] for column in spec["schema"]["columns"]}


def test_parameters_that_share_one_buffer(plain: Model, tmp_path: Path) -> None:
    """The engine's fused step keeps all parameters as views of one flat tensor."""
    expected = outputs(plain, raw_of(plain))
    flat = torch.cat([p.detach().flatten() for p in plain.parameters()])
    start = 0
    for parameter in plain.parameters():
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    export = export_model(plain, str(tmp_path))
    assert export.bytes < 2 * flat.numel() * 4
    np.testing.assert_array_equal(load_model(str(tmp_path)).logits(raw_of(plain)), expected)


def test_training_travels_along(plain: Model, tmp_path: Path) -> None:
    training = {"format": "kubestill/training/1", "steps": 3}
    export_model(plain, str(tmp_path), training=training)
    assert json.loads((tmp_path / "training.json").read_text()) == training
    export_model(plain, str(tmp_path))
    assert not (tmp_path / "training.json").exists(), "a retried step leaves nothing of its first"


@pytest.mark.parametrize("ending", ["", ".tmp"])
def test_an_export_writes_through_no_link(plain: Model, tmp_path: Path, ending: str) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    folder.mkdir()
    other.write_text("somebody else's")
    for name in (SPEC_FILE, WEIGHTS_FILE, TRAINING_FILE):
        (folder / f"{name}{ending}").symlink_to(other)
    export_model(plain, str(folder), training={"steps": 1})
    assert other.read_text() == "somebody else's"
    assert not any((folder / name).is_symlink() for name in (SPEC_FILE, WEIGHTS_FILE))
    load_model(str(folder))


def test_failed_export_leaves_no_model(plain: Model, tmp_path: Path) -> None:
    export_model(plain, str(tmp_path))
    with pytest.raises(ValueError, match="JSON"):
        export_model(plain, str(tmp_path), training={"loss": float("nan")})
    with pytest.raises(InvalidInput, match="no exported model"):
        load_model(str(tmp_path))


def test_loads_from_a_store(plain: Model, tmp_path: Path) -> None:
    export_model(plain, str(tmp_path))
    store = open_store("memory://models/one")
    for name in os.listdir(tmp_path):
        store.upload(str(tmp_path / name), name)
    predictor = load_model("memory://models/one")
    np.testing.assert_array_equal(predictor.logits(raw_of(plain)), outputs(plain, raw_of(plain)))


@pytest.mark.parametrize("ema", [False, True], ids=["weights", "moving average"])
def test_checkpoint_exports_like_the_model(plain: Model, tmp_path: Path, ema: bool) -> None:
    state = {f"model/{name}": tensor for name, tensor in plain.state_dict().items()}
    if ema:
        state = {
            **{name: torch.zeros_like(tensor) for name, tensor in state.items()},
            **{f"ema/{name}": tensor for name, tensor in plain.state_dict().items()},
        }
    state["optimizer/0/exp_avg"] = torch.ones(3)
    spec = json.loads(json.dumps(plain.spec.to_json()))
    found = streamed(state, spec, tmp_path / "a")
    assert found == export_model(plain, str(tmp_path / "b"))


def test_weights_that_come_in_pieces_make_the_same_files(plain: Model, tmp_path: Path) -> None:
    """Of every type and with odd names, as safetensors itself writes them."""
    every = {f"model/{dtype}": torch.arange(5).to(dtype) for dtype in _NAMES}
    every |= {
        'model/\u00e9"b': torch.rand(3),
        "model/B": torch.rand(()),
        "model/a.b": torch.rand(2, 0),
    }
    every |= {"ema/a/b": torch.rand(300_000), "model/a/b": torch.rand(7), "model/Z": torch.rand(2)}
    whole = {name.partition("/")[2]: tensor for name, tensor in every.items()}
    whole["a/b"] = every["ema/a/b"]
    tensors = {**every, "optimizer/a/step": torch.rand(3)}
    found = streamed(tensors, plain.spec.to_json(), tmp_path / "one", training={"steps": 3})
    content = (tmp_path / "one" / WEIGHTS_FILE).read_bytes()
    assert content == safetensors.torch.save(whole)
    assert found.bytes == len(content)
    # Again with another record, as selection writes what it has scored.
    again = copy_export(str(tmp_path / "one"), str(tmp_path / "two"), training={"steps": 4})
    assert again == found
    for name in (WEIGHTS_FILE, SPEC_FILE):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert json.loads((tmp_path / "two" / TRAINING_FILE).read_bytes()) == {"steps": 4}


def streamed(
    tensors: dict[str, torch.Tensor], spec: dict[str, Any], folder: Path, **options: Any
) -> Export:
    """Export tensors that come in pieces, in any order."""
    incoming = Incoming(str(folder))
    pieces: list[tuple[Any, int, bytes]] = []
    for name, tensor in tensors.items():
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype = _NAMES[tensor.dtype]
        put = incoming.begin(name, dtype, tuple(tensor.shape), len(content))
        assert (put is None) == name.startswith("optimizer")
        starts = range(0, len(content), 100_000)
        pieces += [(put, start, content[start : start + 100_000]) for start in starts if put]
    random.Random(0).shuffle(pieces)
    for put, start, content in pieces:
        put(start, memoryview(content))
    with closing(incoming):
        return incoming.export(spec, **options)


@pytest.mark.parametrize("meta", [{}, {"model_spec": {"format": "kubestill/model/9"}}], ids=str)
def test_checkpoint_without_a_model(meta: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="model spec"):
        streamed({"model/w": torch.ones(1)}, meta.get("model_spec", {}), tmp_path)


def test_checkpoint_without_weights(plain: Model, tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="no tensor named 'model/"):
        streamed({}, plain.spec.to_json(), tmp_path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Any] = {
    "bit flipped": lambda folder: _flip(folder / "model.safetensors"),
    "weights truncated": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "weights of another": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "spec truncated": lambda folder: os.truncate(folder / "model.json", 200),
    "spec not UTF-8": lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe"),
    "spec a list": lambda folder: (folder / "model.json").write_text("[]"),
    "spec incomplete": lambda folder: edit(folder, lambda spec: spec.pop("encoder")),
    "encoder incomplete": lambda folder: edit(folder, lambda spec: spec["encoder"].pop("columns")),
    "later format": lambda folder: edit(
        folder, lambda spec: spec.update(format="kubestill/model/2")
    ),
}


def edit(folder: Path, change: Any) -> None:
    path = folder / "model.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told(plain: Model, tmp_path: Path, damage: str) -> None:
    export_model(plain, str(tmp_path))
    DAMAGE[damage](tmp_path)
    with pytest.raises(CorruptData, match="model"):
        load_model(str(tmp_path))


def test_weights_that_do_not_fit_the_spec(plain: Model, tmp_path: Path) -> None:
    export_model(plain, str(tmp_path))
    edit(tmp_path, lambda spec: spec["network"]["args"].update(hidden=[3]))
    with pytest.raises(CorruptData, match="size mismatch"):
        load_model(str(tmp_path))


def exchange_weights(folder: Path, content: bytes) -> None:
    """Put other weights in place, and name them in the spec."""
    (folder / "model.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda spec: spec.update(digest=digest))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_weights_of_another_kind_are_no_weights(
    plain: Model, tmp_path: Path, kind: torch.dtype
) -> None:
    export_model(plain, str(tmp_path))
    weights = safetensors.torch.load_file(str(tmp_path / "model.safetensors"))
    last = next(reversed(weights))
    weights[last] = weights[last].to(kind)
    exchange_weights(tmp_path, safetensors.torch.save(weights))
    with pytest.raises(CorruptData, match=f"{last} holds floating numbers by the spec, {kind}"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"])
def test_numbers_that_torch_lacks_are_no_weights(plain: Model, tmp_path: Path, kind: str) -> None:
    export_model(plain, str(tmp_path))
    head = json.dumps({"x": {"dtype": kind, "shape": [0], "data_offsets": [0, 0]}}).encode()
    exchange_weights(tmp_path, len(head).to_bytes(8, "little") + head)
    with pytest.raises(CorruptData, match=f"a type that torch lacks: '{kind}'"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_folder_without_a_model(plain: Model, tmp_path: Path, name: str) -> None:
    export_model(plain, str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(InvalidInput, match="no exported model"):
        load_model(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("device", "remedy"), [("cuda", "sees 0 GPUs here"), ("gpu", "use auto, cpu, cuda")]
)
def test_a_device_that_is_not_here(plain: Model, tmp_path: Path, device: str, remedy: str) -> None:
    export_model(plain, str(tmp_path))
    with pytest.raises(InvalidInput, match=remedy):
        load_model(str(tmp_path), device=device)
    assert load_model(str(tmp_path), device="auto").model.device.type == "cpu"


def test_missing_network_is_named(plain: Model, tmp_path: Path) -> None:
    export_model(plain, str(tmp_path))
    edit(tmp_path, lambda spec: spec["network"].update(factory="own_networks:Gone"))
    with pytest.raises(InvalidInput, match="own_networks has no 'Gone'"):
        load_model(str(tmp_path))


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_pickle_in_place_of_the_weights_is_not_executed(plain: Model, tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    folder = tmp_path / "model"
    export_model(plain, str(folder))
    exchange_weights(folder, pickle.dumps(Bomb(marker)))
    with pytest.raises(CorruptData):
        load_model(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("factory", "args"),
    [
        ("os:mkdir", {"path": "MARKER"}),
        ("pathlib:Path.mkdir", {"self": "MARKER"}),
        ("numpy:savetxt", {"fname": "MARKER", "X": [1]}),
        ("torch.hub:load", {"repo_or_dir": "MARKER", "model": "x", "source": "local"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forged_factory_is_not_called(
    plain: Model, tmp_path: Path, factory: str, args: dict[str, Any]
) -> None:
    marker = tmp_path / "exploded"
    folder = tmp_path / "model"
    export_model(plain, str(folder))
    args = {key: str(marker) if value == "MARKER" else value for key, value in args.items()}
    edit(folder, lambda spec: spec["network"].update(factory=factory, args=args))
    with pytest.raises(InvalidInput, match="network"):
        load_model(str(folder))
    assert not marker.exists()


def test_changed_source_is_mentioned(
    plain: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_model(plain, str(tmp_path))
    load_model(str(tmp_path))
    assert not caplog.records
    edit(tmp_path, lambda spec: spec["network"].update(source="0" * 64))
    load_model(str(tmp_path))
    assert "mlp changed" in caplog.text


def test_spec_survives_json(model: Model) -> None:
    form = json.loads(json.dumps(model.spec.to_json()))
    assert ModelSpec.from_json(form).to_json() == form


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, kubestill; assert 'torch' not in sys.modules;"
        "assert 'load_model' in kubestill.__all__;"
        "kubestill.load_model; assert 'torch' in sys.modules and 'kfp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
