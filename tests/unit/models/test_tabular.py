"""The network for tables: its bins, its members, and what training makes of them."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.decode import RawLayout
from kubestill.runtime.datasets.schema import Column, Schema, Task
from kubestill.runtime.models.build import build_network
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.tabular import PiecewiseLinear, TabM, fit_bins, tabm
from kubestill.runtime.training.losses import Ensemble, Weighted, build_loss

DRAW = np.random.default_rng(0)


def numbers(*names: str) -> RawLayout:
    columns = tuple(Column(name=name, kind="numeric") for name in names)
    target = Column(name="y", kind="numeric", role="target")
    return RawLayout(Schema(columns=(*columns, target), task="regression"))


def encode(raw: np.ndarray, bins: int, **options: Any) -> tuple[np.ndarray, Encoder]:
    encoder = Encoder.fit([raw], numbers(*(f"x{i}" for i in range(raw.shape[1]))))
    return encoder.find_edges(raw, bins, **options), encoder


def test_bins_add_up_to_the_number_within_what_training_saw() -> None:
    """Piecewise linear and without jumps: widths times features, summed, are the clipped number."""
    edges = np.sort(DRAW.normal(size=(3, 9)), axis=1)
    edges[1, 5:] = edges[1, 4]
    module = PiecewiseLinear(3, 8)
    module.fit(edges)
    rows = DRAW.normal(scale=3, size=(500, 5)).astype(np.float32)
    found = module(torch.from_numpy(rows)).numpy()
    assert found.shape == (500, 3 * 8 + 5)
    encoded = found[:, :24].reshape(500, 3, 8)
    assert encoded.min() == 0
    assert encoded.max() == 1
    total = (encoded * np.diff(edges, axis=1)).sum(2) + edges[:, 0]
    np.testing.assert_allclose(total, np.clip(rows[:, :3], edges[:, 0], edges[:, -1]), atol=1e-5)
    np.testing.assert_array_equal(found[:, 24:], rows)


def test_edges_are_quantiles_of_the_values_that_are_there() -> None:
    raw = DRAW.lognormal(size=(4000, 2)).astype(np.float32)
    raw[::3, 0] = np.nan
    edges, encoder = encode(raw, 10)
    for i in range(2):
        there = raw[np.isfinite(raw[:, i]), i].astype(np.float64)
        wanted = np.quantile(there, np.linspace(0, 1, 11), method="inverted_cdf")
        wanted = (wanted - encoder.columns[i].mean[0]) / encoder.columns[i].std[0]
        np.testing.assert_allclose(edges[i], wanted, rtol=1e-5, atol=1e-6)


def test_few_values_are_the_edges_themselves() -> None:
    raw = np.stack([DRAW.integers(0, 2, 200), DRAW.integers(0, 5, 200), np.ones(200)], axis=1)
    edges, encoder = encode(raw.astype(np.float32), 6)
    back = edges * [[c.std[0]] for c in encoder.columns] + [[c.mean[0]] for c in encoder.columns]
    wanted = [[0, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 4, 4], [1] * 7]
    np.testing.assert_allclose(back, wanted, atol=1e-6)


@pytest.mark.parametrize("mostly", [[0.0], [0.0, 5.0], [-1.0, 0.0, 1.0, 2.0]])
def test_a_frequent_value_is_one_edge_and_leaves_the_bins_to_the_others(mostly: list) -> None:
    """Nine rows in ten say the same: quantiles of all rows would be that value, and two others."""
    raw = DRAW.normal(scale=20, size=(5000, 1))
    raw[:4500, 0] = DRAW.choice(mostly, 4500)
    edges, encoder = encode(raw.astype(np.float32), 16)
    (mean,), (std,) = encoder.columns[0].mean, encoder.columns[0].std
    back = edges[0] * std + mean
    assert len(np.unique(edges)) == 17
    for value in mostly:
        assert np.isclose(back, value, atol=1e-5).sum() == 1
    others = back[~np.isclose(back[:, None], mostly, atol=1e-5).any(1)]
    wanted = np.quantile(raw[4500:], np.linspace(0, 1, len(others)), method="inverted_cdf")
    np.testing.assert_allclose(others, wanted, rtol=1e-4, atol=1e-4)


def test_a_row_of_weight_two_is_two_rows() -> None:
    raw = DRAW.normal(size=(999, 1)).astype(np.float32)
    raw[::2] = 0
    weights = DRAW.integers(0, 4, 999).astype(np.float32)
    encoder = encode(raw, 7)[1]
    repeated = encoder.find_edges(np.repeat(raw, weights.astype(int), axis=0), 7)
    np.testing.assert_array_equal(encoder.find_edges(raw, 7, weights), repeated)


def test_columns_without_numbers_have_no_bins() -> None:
    columns = (
        Column(name="c", kind="categorical", categories=("a", "b", "c")),
        Column(name="y", kind="numeric", role="target"),
    )
    encoder = Encoder.fit([], RawLayout(Schema(columns=columns, task="regression")))
    assert encoder.scaled == 0
    network = tabm(encoder.width, 1, encoder.scaled)
    fit_bins(network, encoder, np.zeros((4, 1), np.float32), None)
    assert network.eval()(torch.eye(3)).shape == (3, 1)


@pytest.mark.parametrize("bins", [0, 5])
def test_a_member_is_a_network_of_its_own_on_shared_matrices(bins: int) -> None:
    torch.manual_seed(1)
    network = tabm(4, 3, 2, hidden=[16, 8], members=3, bins=bins, dropout=0.0)
    rows = torch.randn(10, 4)
    together = network(rows)
    assert together.shape == (10, 3, 3)
    layers: list[Any] = [layer for layer in network.body if not isinstance(layer, nn.ReLU)]
    for member in range(3):
        hidden = rows if network.encoding is None else network.encoding(rows)
        for layer in layers:
            matrix = layer.above[member][:, None] * layer.weight * layer.below[member]
            hidden = F.relu(F.linear(hidden, matrix, layer.bias[member]))
        alone = hidden @ network.head[member] + network.bias[member]
        torch.testing.assert_close(together[:, member], alone)
    torch.testing.assert_close(network.eval()(rows), together.mean(1))
    assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-3)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_answer_is_the_mean_of_probabilities_where_there_are_classes(task: Task) -> None:
    """As built for the task; a member that is sure does not overrule the others."""
    labels = {"binary": ("a", "b"), "multiclass": ("a", "b", "c"), "regression": None}[task]
    kind = "categorical" if labels else "numeric"
    target = Column(name="y", kind=kind, role="target", categories=labels)
    layout = RawLayout(Schema(columns=(Column(name="x", kind="numeric"), target), task=task))
    rows = torch.linspace(-2, 2, 50)[:, None]
    encoder = Encoder.fit([rows.numpy()], layout)
    arguments = {"members": 3, "hidden": [8], "bins": 4, "dropout": 0.0}
    network = build_network("tabm", arguments, layout=layout, encoder=encoder, seed=0)
    assert isinstance(network, TabM)
    with torch.no_grad():
        network.head.mul_(40)
        network.head[0].mul_(40)  # sure of everything
        each, answer = network(rows), network.eval()(rows)
    shares = {
        "binary": torch.sigmoid,
        "multiclass": lambda logits: logits.softmax(-1),
        "regression": lambda values: values,
    }[task]
    torch.testing.assert_close(shares(answer), shares(each).mean(1))
    assert answer.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_every_member_learns_by_itself(weighted: bool) -> None:
    """The gradient is autograd's of the mean of the members' own losses."""
    outputs = torch.randn(6, 4, 3, requires_grad=True)
    labels, weights = torch.tensor([0, 1, 2, 2, 1, 0]), torch.rand(6)
    loss: Any = build_loss("cross_entropy")
    targets = (labels, weights) if weighted else (labels,)
    found, gradient = Ensemble(loss=Weighted(loss=loss) if weighted else loss)(
        outputs.detach(), targets
    )
    each = torch.stack(
        [F.cross_entropy(outputs[:, m], labels, reduction="none") for m in range(4)], 1
    )
    wanted = (each * weights[:, None] if weighted else each).mean()
    wanted.backward()
    torch.testing.assert_close(found, wanted.detach())
    torch.testing.assert_close(gradient, outputs.grad)


@pytest.mark.parametrize(("numbers", "bins"), [(50, 48), (784, 5), (5000, 0)])
def test_many_numbers_have_fewer_bins(numbers: int, bins: int) -> None:
    encoding = tabm(numbers, 1, numbers, hidden=[4]).encoding
    assert (encoding.bins if encoding else 0) == bins


def test_all_bad_arguments_at_once() -> None:
    wrong: dict[str, Any] = {
        "hidden": [],
        "members": 0,
        "bins": -1,
        "activation": "rellu",
        "dropout": 1.0,
        "numeric_features": 9,
    }
    with pytest.raises(InvalidInput) as caught:
        tabm(3, 1, **wrong)
    assert {problem.field for problem in caught.value.problems} == set(wrong)
