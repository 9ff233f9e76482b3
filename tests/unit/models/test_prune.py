"""Pruning by whole units: what matters least goes, and files shrink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from model_samples import image_schema, images, make_model, mixed_frame, mixed_schema
from torch import Tensor, nn

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Schema
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.prune import prune
from kubestill.runtime.models.serve import export_onnx

FRAMES: dict[str, Any] = {"rows": mixed_frame(), "images": images(2, 8, 8)}
CASES: dict[str, tuple[Schema, str, str, dict[str, Any]]] = {
    "mlp": (mixed_schema("multiclass"), "rows", "mlp", {"hidden": [24, 12]}),
    "norms": (
        mixed_schema("vector"),
        "rows",
        "mlp",
        {"hidden": [24, 12], "norm": "batch", "dropout": 0.1},
    ),
    "tabm": (mixed_schema("binary"), "rows", "tabm", {"hidden": [24, 12], "members": 3}),
    "conv": (image_schema(2, 8, 8), "images", "conv", {"channels": [12, 24]}),
    "conv without norms": (
        image_schema(2, 8, 8),
        "images",
        "conv",
        {"channels": [12, 24], "norm": "none"},
    ),
}


def of(name: str) -> tuple[Model, Tensor]:
    """Return a model whose layers do not read every third unit of the layer below."""
    schema, kind, network, args = CASES[name]
    model = make_model(schema, FRAMES[kind], network=network, network_args=args)
    generator = torch.Generator().manual_seed(3)
    hidden = 0
    for module in model.network.modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for one in (module.weight, module.bias, module.running_mean):
                one.data.normal_(generator=generator)  # pyright: ignore
        elif (
            isinstance(weight, Tensor) and weight.dim() > 1 and "Embed" not in type(module).__name__
        ):
            if hidden:  # what reads features reads them all
                weight.data[:, ::3] = 0.0
            hidden += 1
    head: Any = getattr(
        model.network[-1] if isinstance(model.network, nn.Sequential) else None, "head", None
    )
    if isinstance(head, nn.Parameter):
        head.data[:, ::3] = 0.0
    raw = torch.from_numpy(decode_features(FRAMES[kind], RawLayout(schema)))
    return model, raw


def widths(model: Model) -> list[int]:
    args = model.spec.network["args"]
    return [*args.get("hidden", args.get("channels"))]


@pytest.mark.parametrize("name", CASES)
def test_units_that_nobody_reads_go_and_leave_the_answers(name: str, tmp_path: Path) -> None:
    model, raw = of(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    wanted = model(raw)
    full = model.spec.parameters
    # The largest that keeps two thirds of each layer: exactly what is read.
    smaller = [width * 2 // 3 for width in widths(model)]
    args = {**model.spec.network["args"]}
    args |= {key: smaller for key in ("hidden", "channels") if key in args}
    target = Model.create(
        model.spec.schema,
        encoder=model.encoder,
        decoder=model.decoder,
        network=model.spec.network["factory"],
        network_args=args,
    ).spec.parameters
    found = prune(model, target, model.encoder(raw)).eval()
    assert widths(found) == smaller
    assert found.spec.parameters == target < full
    torch.testing.assert_close(found(raw), wanted, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    fewer = prune(model, target * 9 // 10)
    assert fewer.spec.parameters <= target * 9 // 10
    assert all(a < b for a, b in zip(widths(fewer), smaller, strict=True))


def test_a_pruned_file_is_smaller_and_loads(tmp_path: Path) -> None:
    model, raw = of("conv")
    found = prune(model, model.spec.parameters // 4, model.encoder(raw)).eval()
    path = tmp_path / "model.onnx"
    export_onnx(found, str(path))
    assert path.stat().st_size < model.bytes  # of its weights alone
    given = {"image": np.stack(FRAMES["images"]["image"].to_list()).astype(np.float32)}
    chances: Any = onnxruntime.InferenceSession(path).run(["probabilities"], given)[0]
    mine = torch.softmax(found(raw), 1).detach().numpy()
    np.testing.assert_allclose(chances, mine, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "args", "most", "says"),
    [
        ("siren", {}, 100, "siren.*can lose units; use such a teacher"),
        ("mlp", {"hidden": [8, 8], "residual": True}, 100, "mlp, residual"),
        ("mlp", {"hidden": [8]}, 10_000, "the teacher has .* parameters; give fewer"),
        ("mlp", {"hidden": [8]}, 5, "are left where each layer has one unit; give more"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    network: str, args: dict[str, Any], most: int, says: str
) -> None:
    model = make_model(mixed_schema("binary"), mixed_frame(), network=network, network_args=args)
    with pytest.raises(InvalidInput, match=says):
        prune(model, most)
