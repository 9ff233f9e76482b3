from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.models.networks import ACTIVATIONS, Residual, mlp


def test_plain_is_exactly_linear_and_activation_in_turns() -> None:
    network = mlp(8, 3, hidden=[64, 32], activation="tanh")
    assert type(network) is nn.Sequential
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    widths = [(layer.in_features, layer.out_features) for layer in network[::2]]  # type: ignore[union-attr]
    assert widths == [(8, 64), (64, 32), (32, 3)]


def test_no_hidden_layer_is_a_linear_model() -> None:
    network = mlp(8, 3, hidden=[])
    assert [type(layer) for layer in network] == [nn.Linear]


def test_norm_and_dropout_go_around_the_activation() -> None:
    network = mlp(8, 3, hidden=[16], norm="layer", dropout=0.2)
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout, nn.Linear]


def test_residual_skips_layers_that_keep_their_width() -> None:
    network = mlp(16, 3, hidden=[16, 16, 8, 8], residual=True)
    assert [type(layer) for layer in network] == [
        *(nn.Linear, nn.ReLU),
        Residual,
        *(nn.Linear, nn.ReLU),
        Residual,
        nn.Linear,
    ]
    block = network[2]
    features = torch.randn(4, 16)
    assert isinstance(block, Residual)
    assert torch.equal(block(features), features + block.block(features))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_builds(activation: str) -> None:
    assert mlp(4, 2, activation=activation)(torch.randn(5, 4)).shape == (5, 2)


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        pytest.param({"hidden": [16, 0]}, "hidden", "at least one unit", id="hidden"),
        pytest.param({"activation": "rellu"}, "activation", "'relu'", id="activation"),
        pytest.param({"dropout": 1.0}, "dropout", "probability", id="dropout"),
        pytest.param({"norm": "batchnorm"}, "norm", "'batch'", id="norm"),
        pytest.param({"hidden": [8, 4], "residual": True}, "residual", "same width", id="residual"),
    ],
)
def test_refuses_with_a_remedy(options: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mlp(4, 2, **options)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert remedy in problem.remedy


def test_lists_all_problems_together() -> None:
    with pytest.raises(InvalidInput) as caught:
        mlp(4, 2, hidden=[-1], activation="?", dropout=-0.1, norm="?")
    assert len(caught.value.problems) == 4
