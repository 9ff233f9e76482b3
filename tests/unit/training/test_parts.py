"""Each part of a loss against its paper, written out number by number, and published numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kubestill.runtime.training.parts import (
    Attention,
    Consistency,
    Contrast,
    DecoupledDistillation,
    Features,
    Relations,
    Seen,
    pool_to,
)

ROWS, CLASSES = 6, 4
DTYPES = [torch.float32, torch.float64]
GRIDS = [((), ()), ((5,), (5,)), ((6,), (4,)), ((4, 4), (4, 4)), ((7, 5), (3, 5)), ((3, 2), (6, 4))]
GRIDS += [((2, 3, 4), (2, 2, 2))]
PAIR = [("own", "theirs")]


def numbers(*shape: int, seed: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return numbers that any implementation can be given."""
    count = math.prod(shape)
    return torch.tensor(np.sin(np.arange(count) * 1.7 + seed) * 2, dtype=dtype).reshape(shape)


def seen(layer: Tensor, *, name: str, outputs: Tensor | None = None) -> Seen:
    return Seen(
        outputs=torch.zeros(len(layer)) if outputs is None else outputs, layers={name: layer}
    )


def ask(part: Any, own: Tensor, theirs: Tensor) -> Tensor:
    return part(seen(own, name="own"), seen(theirs, name="theirs"), ())


def compare(found: Tensor, wanted: list[float], dtype: torch.dtype) -> None:
    close = 2e-4 if dtype == torch.float32 else 1e-9
    assert found.shape == (len(wanted),)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=close, atol=close)


def adaptive(layer: Tensor, grid: tuple[int, ...]) -> Tensor:
    pools: list[Callable[..., Tensor]]
    pools = [F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d]
    return pools[len(grid) - 1](layer, grid) if grid else layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", range(1, 8))
def test_pooling_is_torch_s_adaptive_one(size: int, dtype: torch.dtype) -> None:
    layer = numbers(2, 3, 7, 5, seed=1, dtype=dtype)
    grid = (size, min(size, 5))
    torch.testing.assert_close(pool_to(layer, grid), F.adaptive_avg_pool2d(layer, grid))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_features_are_those_of_romero_et_al(grids: tuple[Any, Any], dtype: torch.dtype) -> None:
    own = numbers(ROWS, 3, *grids[0], seed=1, dtype=dtype)
    theirs = numbers(ROWS, 5, *grids[1], seed=2, dtype=dtype)
    part = Features(PAIR, [(3, 5)]).to(dtype)
    weight, bias = part.maps[0].weight, part.maps[0].bias
    grid = tuple(map(min, *grids))
    mine, wanted = (adaptive(x, grid).reshape(*x.shape[:2], -1) for x in (own, theirs))
    mapped = F.conv1d(mine, weight[:, :, None], bias).detach()  # pyright: ignore
    each = [float(F.mse_loss(mapped[row], wanted[row])) for row in range(ROWS)]
    compare(ask(part, own, theirs), each, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grids", GRIDS[1:], ids=str)
def test_attention_is_that_of_zagoruyko_and_komodakis(
    grids: tuple[Any, Any], dtype: torch.dtype
) -> None:
    own = numbers(ROWS, 3, *grids[0], seed=1, dtype=dtype)
    theirs = numbers(ROWS, 5, *grids[1], seed=2, dtype=dtype)
    grid = tuple(map(min, *grids))
    each: list[float] = []
    for row in range(ROWS):
        maps: list[np.ndarray] = []
        for layer in (own, theirs):
            pooled = adaptive(layer, grid)[row].double().numpy()
            flat = np.mean([channel.ravel() ** 2 for channel in pooled], axis=0)
            maps.append(flat / np.sqrt(np.sum(flat**2)))
        each.append(float(np.mean((maps[0] - maps[1]) ** 2)))
    compare(ask(Attention(PAIR), own, theirs), each, dtype)


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5


def relations(layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Park et al.'s psi_D for every pair (eq. 6) and psi_A for every triple (eq. 9)."""
    rows = layer.reshape(len(layer), -1).astype(np.float64)
    count = range(len(rows))
    apart = np.array([[np.linalg.norm(rows[i] - rows[j]) for j in count] for i in count])
    angles = np.zeros((len(rows),) * 3)
    for i, j, k in itertools.product(count, repeat=3):
        if apart[i, j] > 0 and apart[i, k] > 0:
            angles[i, j, k] = (rows[j] - rows[i]) @ (rows[k] - rows[i]) / apart[i, j] / apart[i, k]
    return apart / apart[apart > 0].mean(), angles


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 3)], ids=str)
@pytest.mark.parametrize("twins", [False, True], ids=["apart", "twins"])
def test_relations_are_those_of_park_et_al(
    shape: tuple[int, ...], distance: float, angle: float, twins: bool, dtype: torch.dtype
) -> None:
    own, theirs = numbers(ROWS, *shape, seed=1), numbers(ROWS, 11, seed=2)
    if twins:
        own[3] = own[1]
        theirs[4] = theirs[0]
    (mine, turned), (wanted, others) = relations(own.numpy()), relations(theirs.numpy())
    each = [
        distance * float(np.mean([huber(mine[i, j] - wanted[i, j]) for j in range(ROWS)]))
        + angle * float(np.mean([[huber(x) for x in line] for line in turned[i] - others[i]]))
        for i in range(ROWS)
    ]
    part = Relations(PAIR, distance=distance, angle=angle)
    compare(ask(part, own.to(dtype), theirs.to(dtype)), each, dtype)
    outputs = Relations([], distance=distance, angle=angle)
    both = [Seen(outputs=x.to(dtype).flatten(1), layers={}) for x in (own, theirs)]
    compare(outputs(both[0], both[1], ()), each, dtype)


def decoupled(
    student: np.ndarray, teacher: np.ndarray, target: int, alpha: float, beta: float, t: float
) -> float:
    """Return Zhao et al.'s loss of a row: eq. 7, with b and p-hat of eqs. 1 to 3."""

    def parts(logits: np.ndarray) -> tuple[list[float], list[float]]:
        powers = [math.exp(value / t) for value in logits]
        others = [power for i, power in enumerate(powers) if i != target]
        sure = powers[target] / sum(powers)
        return [sure, sum(others) / sum(powers)], [power / sum(others) for power in others]

    (b, hat), (b_teacher, hat_teacher) = parts(student), parts(teacher)
    target_class = sum(x * math.log(x / y) for x, y in zip(b_teacher, b, strict=True))
    others = sum(x * math.log(x / y) for x, y in zip(hat_teacher, hat, strict=True))
    return t**2 * (alpha * target_class + beta * others)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [3, CLASSES, 11])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (1.0, 8.0)])
def test_decoupled_distillation_is_that_of_zhao_et_al(
    classes: int, temperature: float, alpha: float, beta: float, dtype: torch.dtype
) -> None:
    student, teacher = numbers(ROWS, classes, seed=1), numbers(ROWS, classes, seed=2) * 2
    labels = torch.tensor([0, 1, 2, -1, 1, -1])
    targets = torch.where(labels < 0, teacher.argmax(1), labels)
    each = [
        decoupled(student[i].numpy(), teacher[i].numpy(), int(targets[i]), alpha, beta, temperature)
        for i in range(ROWS)
    ]
    part = DecoupledDistillation(temperature=temperature, alpha=alpha, beta=beta)
    soft = (teacher / temperature).softmax(1).to(dtype)
    given = Seen(outputs=student.to(dtype), layers={})
    compare(part(given, None, (soft, labels)), each, dtype)
    shares = F.one_hot(labels.clamp(min=0), classes) * 0.7 + 0.3 / classes
    shares[labels < 0] = torch.nan
    compare(part(given, None, (soft, shares)), each, dtype)
    members = Seen(outputs=given.outputs[:, None].repeat(1, 3, 1), layers={})
    compare(part(members, None, (soft, labels)), each, dtype)


def test_a_teacher_without_a_doubt_costs_what_is_finite() -> None:
    part = DecoupledDistillation(temperature=1.0, alpha=1.0, beta=8.0)
    student = torch.tensor([[200.0, 0.0, 0.0], [0.0, 1.0, 2.0]], requires_grad=True)
    sure = torch.eye(3)[:2]
    cost = part(Seen(outputs=student, layers={}), None, (sure,))
    cost.sum().backward()
    assert cost.isfinite().all()
    assert cost[0] == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


PUBLISHED = {
    "attention": 0.004201952786198463,
    "distance": 4.069284509595805,
    "distance and angle": 13.600375730748276,
    "dkd 1": 9.971007984823062,
    "dkd 4": 39.08930589284286,
}
"""What megvii-research/mdistiller gives, commit e8c5bb3, for the numbers below, in float64."""
CONTRAST = [6.834631370295072, 12.690540983168445, 10.785472274109903]
"""What HobbitLong/RepDistiller gives, commit b84f547, for three batches, in float64."""


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("attention", Attention(PAIR)),
        ("distance", Relations(PAIR, distance=25.0, angle=0.0)),
        ("distance and angle", Relations(PAIR, distance=25.0, angle=50.0)),
    ],
    ids=["attention", "distance", "distance and angle"],
)
def test_layers_cost_what_is_published(name: str, part: Any) -> None:
    own, theirs = numbers(8, 3, 6, 6, seed=1), numbers(8, 5, 4, 4, seed=2)
    assert float(ask(part, own, theirs).mean()) == pytest.approx(PUBLISHED[name], rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_answers_cost_what_is_published(temperature: float) -> None:
    student, teacher = numbers(8, 10, seed=1), numbers(8, 10, seed=2) * 3
    part = DecoupledDistillation(temperature=temperature, alpha=1.0, beta=8.0)
    told = (teacher / temperature).softmax(1), torch.arange(8)
    cost = float(part(Seen(outputs=student, layers={}), None, told).mean())
    assert cost == pytest.approx(PUBLISHED[f"dkd {temperature:g}"], rel=1e-9)


@pytest.mark.parametrize("kind", ["features", "attention", "relations", "dkd"])
def test_gradients_are_those_of_the_costs(kind: str) -> None:
    own = numbers(4, 3, 4, 3, seed=1).requires_grad_()
    theirs, soft = numbers(4, 2, 2, 3, seed=2), numbers(4, CLASSES, seed=3).softmax(1)
    parts: dict[str, Any] = {
        "features": Features(PAIR, [(3, 2)]).double(),
        "attention": Attention(PAIR),
        "relations": Relations(PAIR, distance=1.0, angle=2.0),
        "dkd": DecoupledDistillation(temperature=2.0, alpha=1.0, beta=8.0),
    }

    def cost(layer: Tensor) -> Tensor:
        outputs = layer.flatten(1)[:, :CLASSES]
        student = seen(layer, name="own", outputs=outputs)
        return parts[kind](student, seen(theirs, name="theirs"), (soft,))

    assert torch.autograd.gradcheck(cost, own)


class Given(Contrast):
    """With others that are given, batch by batch."""

    batch = 0

    def draw(self, count: int) -> Tensor:
        others = (torch.arange(count * 7).reshape(count, 7) * 3 + self.batch) % 10
        self.batch += 1
        return others


def contrast() -> Given:
    part = Given(
        PAIR, [(12, 20)], rows=10, dim=6, negatives=7, temperature=0.5, momentum=0.3
    ).double()
    for side, width in enumerate((12, 20)):
        linear = part.maps[0][side]  # pyright: ignore
        linear.weight.data = numbers(6, width, seed=3 + 2 * side)  # pyright: ignore
        linear.bias.data = numbers(6, seed=4 + 2 * side)  # pyright: ignore
        part.memory[0, side] = numbers(10, 6, seed=7 + side)
    return part


def contrasted(part: Contrast, batch: int) -> Tensor:
    own, theirs = numbers(4, 3, 2, 2, seed=10 + batch), numbers(4, 5, 2, 2, seed=20 + batch)
    rows = torch.arange(4) + 2 * batch
    teacher = Seen(outputs=theirs, layers={"theirs": theirs}, rows=rows)
    return part(seen(own, name="own"), teacher, ())


def test_contrast_is_that_of_tian_et_al() -> None:
    """Eqs. 10 and 19, and the authors' memory, row by row."""
    part = contrast()
    memory = [part.memory[0, side].clone().numpy() for side in (0, 1)]
    scales: list[float] = [0.0, 0.0]
    maps = [[p.detach().numpy() for p in part.maps[0][side].parameters()] for side in (0, 1)]  # pyright: ignore
    for batch in range(3):
        layers = [
            numbers(4, 3, 2, 2, seed=10 + batch).numpy().reshape(4, -1),
            numbers(4, 5, 2, 2, seed=20 + batch).numpy().reshape(4, -1),
        ]
        unit = [x @ w.T + b for x, (w, b) in zip(layers, maps, strict=True)]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
        each = np.zeros(4)
        for side in (0, 1):
            chance = np.zeros((4, 8))
            for row, k in np.ndindex(4, 8):
                other = row + 2 * batch if k == 0 else ((row * 7 + k - 1) * 3 + batch) % 10
                chance[row, k] = math.exp(unit[side][row] @ memory[1 - side][other] / 0.5)
            scales[side] = scales[side] or chance.mean() * 10
            chance /= scales[side]
            for row in range(4):
                each[row] -= math.log(chance[row, 0] / (chance[row, 0] + 0.7 + 1e-7))
                each[row] -= sum(math.log(0.7 / (c + 0.7 + 1e-7)) for c in chance[row, 1:])
        for side, row in itertools.product((0, 1), range(4)):
            kept = 0.3 * memory[side][row + 2 * batch] + 0.7 * unit[side][row]
            memory[side][row + 2 * batch] = kept / np.linalg.norm(kept)
        compare(contrasted(part, batch), each.tolist(), torch.float64)


def test_contrast_costs_what_is_published() -> None:
    part = contrast()
    found = [contrasted(part, batch).mean().item() for batch in range(3)]
    assert found == pytest.approx(CONTRAST, rel=1e-9)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_consistency_is_that_of_xie_et_al(task: str) -> None:
    outputs = 1 if task == "binary" else CLASSES
    own = numbers(ROWS, outputs, seed=1).requires_grad_()
    changed = numbers(ROWS, outputs, seed=2).requires_grad_()
    each: list[float] = []
    for a, b in zip(own.tolist(), changed.tolist(), strict=True):
        if task == "regression":
            each.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / outputs)
            continue
        if task == "binary":
            a, b = [0.0, *a], [0.0, *b]
        p, q = ([math.exp(x) / sum(map(math.exp, one)) for x in one] for one in (a, b))
        each.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    cost = Consistency(task)(Seen(outputs=own, layers={}, changed=changed), None, ())
    compare(cost, each, torch.float64)
    cost.sum().backward()
    assert own.grad is None
    assert changed.grad is not None
