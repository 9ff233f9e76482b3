"""Networks for functions and fields: what they keep, what they refuse."""

from typing import Any

import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.models.networks import NETWORKS

SIZES = {"fno": (64, 64), "siren": (3, 2), "fourier": (3, 2), "resmlp": (3, 2)}


@pytest.mark.parametrize("name", SIZES)
def test_it_trains_and_takes_any_number_of_rows(name: str) -> None:
    inputs, outputs = SIZES[name]
    torch.manual_seed(0)
    network = NETWORKS[name](in_features=inputs, out_features=outputs)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    features = torch.randn(32, inputs)
    target = torch.sin(features[:, :outputs])
    losses: list[float] = []
    for _ in range(60):
        loss = (network(features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
    assert network(features[:1]).shape == (1, outputs)


def test_sines_keep_their_scale_through_the_layers() -> None:
    """Sitzmann et al. 2020, theorem 1.8: what enters every layer is distributed alike."""
    torch.manual_seed(0)
    network = NETWORKS["siren"](
        in_features=2, out_features=1, hidden=[256] * 4, first_frequency=30.0, frequency=30.0
    )
    state = torch.rand(4096, 2) * 2 - 1
    spreads: list[float] = []
    with torch.no_grad():
        for layer in list(network.children())[:-1]:
            state = layer(state)
            spreads.append(float(state.std()))
    assert all(abs(spread - 0.5**0.5) < 0.06 for spread in spreads)


@pytest.mark.parametrize(
    ("name", "arguments", "fields"),
    [
        ("siren", {"hidden": [], "frequency": 0.0}, {"hidden", "frequency"}),
        ("fourier", {"frequencies": 0, "activation": "rellu"}, {"frequencies", "activation"}),
        ("resmlp", {"width": 0, "blocks": 0}, {"width", "blocks"}),
    ],
)
def test_all_bad_arguments_at_once(name: str, arguments: dict[str, Any], fields: set[str]) -> None:
    inputs, outputs = SIZES[name]
    with pytest.raises(InvalidInput) as caught:
        NETWORKS[name](**{"in_features": inputs, "out_features": outputs, **arguments})
    assert {problem.field for problem in caught.value.problems} == fields
