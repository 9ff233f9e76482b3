from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import own_networks
import pytest
import torch
from model_samples import image_schema, images, make_model, mixed_frame, mixed_schema
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.models.build import Shaped
from kubestill.runtime.models.embed import Embed
from kubestill.runtime.models.networks import mlp
from kubestill.runtime.models.resolve import resolve_network, source_digest


def refused(
    network: str, args: dict[str, Any] | None = None, *, shape: tuple[int, ...] = ()
) -> str:
    """Return the message for a network that cannot work, on the mixed table or on images."""
    schema = image_schema(*shape) if shape else mixed_schema("multiclass")
    frame = images(*shape) if shape else mixed_frame()
    with pytest.raises(InvalidInput) as caught:
        make_model(schema, frame, network=network, network_args=args or {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("network", "remedy"),
    [
        pytest.param("mpl", "did you mean 'mlp'", id="name"),
        pytest.param("own_network:TinyConv", "did you mean 'own_networks'", id="module"),
        pytest.param("torch.nm:Linear", "or 'nn'", id="submodule"),
        pytest.param("torch.nn.modules.linear.x:Linear", "no module", id="not a package"),
        pytest.param("own_networks:TinyCnv", "did you mean 'TinyConv'", id="attribute"),
        pytest.param("own_networks:Holder.Iner", "did you mean 'Inner'", id="nested attribute"),
        pytest.param("own_networks:", "has no ''", id="no attribute"),
        pytest.param(":TinyConv", "Empty module name", id="no module"),
        pytest.param("own_networks:unannotated", "-> torch.nn.Module", id="unannotated"),
        pytest.param("os:system", "standard library", id="standard library"),
        pytest.param("torch.hub:load", "nothing else is called", id="a loader"),
        pytest.param("kubestill.runtime.models.export:load_model", "nothing else", id="our loader"),
    ],
)
def test_unknown_network_offers_the_nearest(network: str, remedy: str) -> None:
    assert remedy in refused(network)


def test_module_that_lacks_a_dependency_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy_network.py").write_text("import package_that_is_not_there\n")
    (tmp_path / "faulty_network.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "needs 'package_that_is_not_there'" in refused("needy_network:Net")
    assert "ZeroDivisionError" in refused("faulty_network:Net")


@pytest.mark.parametrize(
    ("network", "args", "remedies"),
    [
        pytest.param(
            "mlp",
            {"hiden": [8], "activation": "rellu", "hidden": ["x"]},
            ["network_args.hiden", "did you mean 'hidden'", "network_args.hidden.0", "a whole"],
            id="unknown and mistyped",
        ),
        pytest.param(
            "mlp",
            {"activation": "rellu", "dropout": 3.0},
            ["network_args.activation", "'relu'", "network_args.dropout"],
            id="out of range",
        ),
        pytest.param(
            "own_networks:TinyConv", {}, ["network_args.in_channels", "missing"], id="missing"
        ),
        pytest.param("own_networks:broken", {}, ["RuntimeError: no such file"], id="raises"),
        pytest.param(
            "own_networks:OneOutput", {}, ["into [3, 1], expected [3, 4]"], id="wrong width"
        ),
        pytest.param("own_networks:Pair", {}, ["into tuple, expected [3, 4]"], id="no tensor"),
        pytest.param(
            "own_networks:open_ended",
            {"channels": 2},
            ["failed on a batch of shape [3, 21]"],
            id="wrong input",
        ),
        pytest.param("mlp", {"hidden": {1, 2}}, ["network_args.hidden"], id="not JSON"),
    ],
)
def test_arguments_that_cannot_work(
    network: str, args: dict[str, Any], remedies: list[str]
) -> None:
    message = refused(network, args)
    for remedy in remedies:
        assert remedy in message


def test_mlp_on_a_table_without_large_categories_is_the_bare_sequence() -> None:
    model = make_model(image_schema(8, 8), images(8, 8), network_args={"hidden": [10]})
    assert [type(layer) for layer in model.network.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(key.startswith("network.") for key in model.state_dict())


def test_large_categories_put_an_embedding_in_front() -> None:
    model = make_model(mixed_schema("binary"), mixed_frame())
    embed, network = model.network.children()
    assert isinstance(embed, Embed)
    assert next(network.children()).in_features == 8 + 13  # type: ignore[union-attr]


def test_numbers_as_kubeflow_gives_them() -> None:
    args = {"amount": 1, "steps": 3.0}
    model = make_model(
        mixed_schema("binary"), mixed_frame(), network="own_networks:dose", network_args=args
    )
    assert model.spec.network["args"]["amount"] == 1.0
    model = make_model(image_schema(4), images(4), network_args={"hidden": [8.0, 4.0]})
    assert model.spec.network["args"]["hidden"] == [8, 4]
    json.dumps(model.spec.to_json())


@pytest.mark.parametrize(
    ("shape", "network", "args", "given"),
    [
        pytest.param((8, 8), "own_networks:TinyConv", {}, (1, 8, 8), id="conv gains a channel"),
        pytest.param((3, 8, 8), "own_networks:TinyConv", {}, (3, 8, 8), id="conv on colours"),
        pytest.param((6, 5), "own_networks:Rows", {}, (6, 5), id="true shape"),
        pytest.param((3, 8, 8), "own_networks:open_ended", {}, (3, 8, 8), id="torchvision style"),
    ],
)
def test_single_tensor_comes_in_its_shape(
    shape: tuple[int, ...], network: str, args: dict[str, Any], given: tuple[int, ...]
) -> None:
    model = make_model(image_schema(*shape), images(*shape), network=network, network_args=args)
    assert isinstance(model.network, Shaped)
    assert model.network.shape == given


@pytest.mark.parametrize(
    ("network", "args"),
    [
        pytest.param("torch.nn:Linear", {}, id="class of torch"),
        pytest.param("own_networks:Lazy", {}, id="lazy"),
        pytest.param("own_networks:Tied", {}, id="tied"),
        pytest.param("own_networks:Holder.Inner", {}, id="nested"),
        pytest.param("own_networks:narrow", {"width": 4}, id="refuses num_classes"),
    ],
)
def test_import_paths_on_a_table(network: str, args: dict[str, Any]) -> None:
    schema = mixed_schema("multiclass")
    model = make_model(schema, mixed_frame(), network=network, network_args=args)
    assert model(torch.zeros(5, 5)).shape == (5, 4)
    assert model.spec.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("network", ["mlp", "own_networks:Lazy"])
def test_seed_gives_the_weights_and_global_state_stays(network: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        model = make_model(mixed_schema("binary"), mixed_frame(), network=network, seed=seed)
        return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])

    before = torch.get_rng_state()
    one = weights(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(7), one)
    assert not torch.equal(weights(8), one)


def test_dry_batch_leaves_batch_statistics_alone() -> None:
    model = make_model(image_schema(8, 8), images(8, 8), network="own_networks:TinyConv")
    state = model.state_dict()
    assert state["network.network.norm.num_batches_tracked"] == 0
    assert state["network.network.norm.running_mean"].abs().max() == 0


def test_source_digest_is_of_the_module_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(own_networks.__file__).read_text()
    (tmp_path / "copied_networks.py").write_text(source)
    (tmp_path / "edited_networks.py").write_text(source + "# edited\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = [
        source_digest(resolve_network(f"{module}:Tied"))
        for module in ("own_networks", "copied_networks", "edited_networks")
    ]
    assert digests[0] == digests[1] != digests[2]
    assert source_digest(mlp) == source_digest(resolve_network("mlp"))
