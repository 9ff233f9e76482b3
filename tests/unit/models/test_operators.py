"""Fourier operators against torch.fft, from one dimension to three."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from model_samples import make_model
from torch import Tensor

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.networks import NETWORKS
from kubestill.runtime.models.operators import FNO, SpectralConv

GRIDS = [
    ((64,), (16,)),
    ((64,), (32,)),
    ((45,), (7,)),
    ((12, 10), (4, 3)),
    ((9, 8), (4, 4)),
    ((32, 5), (1, 2)),
    ((8, 6, 10), (2, 3, 5)),
    ((5, 7, 4), (1, 2, 2)),
]


def by_fft(fields: Tensor, weight: Tensor, modes: tuple[int, ...]) -> Tensor:
    """Equation 5 as it stands there: transform, mix the corners that are kept, transform back."""
    grid = fields.shape[1:-1]
    dims = tuple(range(1, len(grid) + 1))
    spectrum = torch.fft.rfftn(fields, dim=dims)
    mixed = torch.zeros_like(spectrum)
    blocks = iter(torch.view_as_complex(weight))
    along = [[*range(m), *range(n - m, n)] for n, m in zip(grid[:-1], modes[:-1], strict=True)]
    for mode in product(*along, range(modes[-1])):
        place = (slice(None), *mode)
        mixed[place] = spectrum[place] @ next(blocks)
    return torch.fft.irfftn(mixed, s=grid, dim=dims)


@pytest.mark.parametrize(("grid", "modes"), GRIDS, ids=str)
def test_spectral_layers_are_the_paper_s(grid: tuple[int, ...], modes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = SpectralConv(grid, 3, modes)
    fields = torch.randn(2, *grid, 3, requires_grad=True)
    found, wanted = layer(fields), by_fft(fields, layer.weight, modes)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(layer(fields.bfloat16()), wanted, atol=6e-3)
    # What training follows: the slopes of both, by the weights and by the fields.
    upwards = torch.randn_like(found)
    of = (layer.weight, fields)
    slopes = torch.autograd.grad(found, of, upwards)
    for slope, known in zip(slopes, torch.autograd.grad(wanted, of, upwards), strict=True):
        torch.testing.assert_close(slope, known, atol=2e-5, rtol=1e-4)


def smooth(grid: tuple[int, ...]) -> Tensor:
    """A field of low frequencies on any grid: [3, *grid]."""
    axes = [2 * np.pi * np.arange(points) / points for points in grid]
    places = np.meshgrid(*axes, indexing="ij")
    waves = [np.sin(sum((k + 1 + n) * x for n, x in enumerate(places))) for k in range(3)]
    return torch.from_numpy(np.stack(waves)).float()


@pytest.mark.parametrize("padding", [0.0, 0.25])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_operator_is_the_same_on_every_grid(dimensions: int, padding: float) -> None:
    coarse, fine = (24, 24, 16)[:dimensions], (48, 72, 32)[:dimensions]
    torch.manual_seed(0)
    answers: list[Tensor] = []
    state: dict[str, Tensor] = {}
    for grid in (coarse, fine):
        size = int(np.prod(grid))
        network = NETWORKS["fno"](
            **{"in_features": size, "out_features": size, "input_shape": grid},
            **{"output_shape": grid, "channels": 6, "modes": [3] * dimensions, "layers": 2},
            padding=padding,
        )
        state = state or network.state_dict()
        network.load_state_dict(state)
        with torch.no_grad():
            answers.append(network(smooth(grid)).reshape(3, *grid))
    steps = (slice(None), *(slice(None, None, b // a) for a, b in zip(coarse, fine, strict=True)))
    off = (answers[1][steps] - answers[0]).norm() / answers[0].norm()
    # What activations fold back from beyond the grid; padding ends the field in a step.
    assert off < (0.05 if padding else 1e-4)


def test_an_operator_without_places_commutes_with_shifts() -> None:
    torch.manual_seed(0)
    shape = {"input_shape": [16, 12], "output_shape": [16, 12], "modes": [5, 4]}
    network = NETWORKS["fno"](in_features=192, out_features=192, places=False, **shape)
    field = torch.randn(5, 16, 12)
    there = network(field.roll((9, 5), dims=(1, 2))).reshape(5, 16, 12)
    back = network(field).reshape(5, 16, 12).roll((9, 5), dims=(1, 2))
    assert torch.allclose(there, back, atol=1e-5)
    told = NETWORKS["fno"](in_features=192, out_features=192, **shape)
    assert not torch.allclose(told(field.roll(9, dims=1)), told(field), atol=1e-3)


@pytest.mark.parametrize(
    ("feature", "target", "modes", "inputs", "outputs"),
    [
        ((16,), (16,), 4, 1, 1),
        ((3, 16), (16,), 4, 3, 1),
        ((16,), (2, 16), [4], 1, 2),
        ((8, 6), (8, 6), 3, 1, 1),
        ((8, 6), (8, 6), [4, 3], 1, 1),
        ((1, 8, 6), (1, 8, 6), [4, 3], 1, 1),
        ((5, 8, 6), (2, 8, 6), [4, 3], 5, 2),
        ((4, 8, 6), (4, 8, 6), 2, 1, 1),
        ((2, 4, 8, 6), (4, 8, 6), [2, 4, 3], 2, 1),
    ],
    ids=str,
)
def test_a_dataset_s_shapes_are_read_as_channels_and_grid(
    feature: tuple[int, ...], target: tuple[int, ...], modes: Any, inputs: int, outputs: int
) -> None:
    columns = (
        Column(name="a", kind="tensor", shape=feature),
        Column(name="u", kind="tensor", role="target", shape=target),
    )
    frame = pd.DataFrame({"a": list(np.random.default_rng(0).random((4, *feature)))})
    model = make_model(
        Schema(columns=columns, task="regression"),
        frame,
        network="fno",
        network_args={"modes": modes, "channels": 4, "layers": 1},
    )
    assert isinstance(model.network, FNO)
    assert model.network.inputs == inputs
    assert model.network.last.out_features == outputs
    assert model(torch.randn(3, int(np.prod(feature)))).shape == (3, int(np.prod(target)))


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"modes": 40, "channels": 0}, {"modes", "channels"}),
        ({"out_features": 3}, {"out_features"}),
        ({"input_shape": [8, 8], "output_shape": [1, 8, 8], "modes": 4}, {"out_features"}),
        ({"input_shape": [1, 8, 8], "output_shape": [1, 8, 8], "modes": 4}, {"modes"}),
        ({"input_shape": [8, 8], "output_shape": [8, 8], "modes": [4, 5]}, {"modes"}),
        ({"input_shape": [8, 8], "output_shape": [8, 8], "modes": []}, {"modes"}),
        ({"input_shape": [8, 8], "output_shape": [8, 8], "modes": [2, 2, 2]}, {"modes"}),
        ({"input_shape": [8, 4], "output_shape": [4, 8], "modes": 2}, {"out_features"}),
        ({"padding": -0.1, "projection": 0}, {"padding", "projection"}),
    ],
)
def test_all_bad_arguments_at_once(arguments: dict[str, Any], fields: set[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        NETWORKS["fno"](**{"in_features": 64, "out_features": 64, **arguments})
    assert {problem.field for problem in caught.value.problems} == fields
