"""The built-in convolutional network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_samples import image_schema, images, make_model  # pyright: ignore[reportMissingImports]
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.models.networks import NETWORKS

conv = NETWORKS["conv"]


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 1, 1), (5, 7), (9,)], ids=str)
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_it_reads_images_and_series_of_any_size(shape: tuple[int, ...], norm: str) -> None:
    width = torch.tensor(shape).prod().item()
    network = conv(in_features=width, out_features=4, input_shape=shape, norm=norm, channels=[8, 8])
    assert network.eval()(torch.randn(5, int(width))).shape == (5, 4)


def test_it_computes_what_torch_does_by_its_layers() -> None:
    network = conv(in_features=48, out_features=2, input_shape=[3, 4, 4], norm="none", channels=[5])
    first, second = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    rows = torch.randn(6, 48)
    maps = second(first(rows.view(6, 3, 4, 4)).relu()).relu()
    below = maps.mean((2, 3))
    assert torch.allclose(network.get_submodule("mean")(maps), below)
    assert torch.allclose(network(rows), network.get_submodule("head")(below), atol=1e-6)


def test_its_weights_do_not_depend_on_the_size_of_the_image() -> None:
    small, large = (
        conv(in_features=side * side, out_features=3, input_shape=[side, side]) for side in (8, 32)
    )
    large.load_state_dict(small.state_dict())


def test_a_model_of_images_takes_it() -> None:
    model = make_model(image_schema(3, 8, 8), images(3, 8, 8), network="conv")
    assert model(torch.rand(2, 192)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "field", "remedy"),
    [
        ({"input_shape": None}, "input_shape", "cannot read 6 features; give a single tensor"),
        ({"input_shape": [1, 1, 2, 3]}, "input_shape", "cannot read a feature"),
        ({"channels": []}, "channels", "at least one stage"),
        ({"channels": [4, 0]}, "channels", "at least one channel"),
        ({"norm": "batches"}, "norm", "batch"),
        ({"activation": "rely"}, "activation", "relu"),
        ({"dropout": 1.0}, "dropout", r"must be in \[0, 1\)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_arguments_that_cannot_work_are_refused(
    arguments: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(InvalidInput, match=remedy) as caught:
        conv(**{"in_features": 6, "out_features": 2, "input_shape": [2, 3], **arguments})
    assert [problem.field for problem in caught.value.problems] == [field]
