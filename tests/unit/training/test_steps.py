"""The fused step against autograd, bit for bit, and both against plain torch."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from kubestill.errors import InvalidInput
from kubestill.runtime.models.networks import mlp as built_in
from kubestill.runtime.training import kernels, steps
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.optimizers import ELEMENTWISE, names
from kubestill.runtime.training.steps import AutogradStep, FusedStep, why_not_fusible

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU]


def mlp(activation: type[nn.Module], outputs: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(8, 32), activation(), nn.Linear(32, 16), activation()]
    return nn.Sequential(*layers, nn.Linear(16, outputs))


def targets(loss: str, rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(rows, 3, generator=generator)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    labels_with_gaps = torch.where(torch.arange(rows) % 3 == 0, -1, labels)
    return {
        "cross_entropy": (labels,),
        "binary_cross_entropy": ((values > 0).float()[:, :1],),
        "mse": (values,),
        "l1": (values,),
        "huber": (values,),
        "distillation": (values.softmax(1), labels_with_gaps),
        "distillation_mse": (values, values.where(values > 0, torch.nan)),
    }[loss]


def train(step: AutogradStep | FusedStep, loss: str, steps: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    seen: list[torch.Tensor] = []
    for i in range(steps):
        rows = 17 if i % 5 == 4 else 64  # a short last batch now and then
        features = torch.randn(rows, 8, generator=generator)
        seen.append(step((features, *targets(loss, rows)), 1e-2).clone())
    return seen


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_fused_equals_autograd(activation: type[nn.Module], optimizer: str) -> None:
    one, two = mlp(activation, 3), mlp(activation, 3)
    loss = build_loss("mse")
    args = {"momentum": 0.9} if optimizer == "SGD" else {}
    by_hand = FusedStep(one, loss, optimizer=optimizer, optimizer_args=args)
    by_torch = AutogradStep(two, loss, optimizer=optimizer, optimizer_args=args)
    assert train(by_hand, "mse") == train(by_torch, "mse")
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "name",
    ["cross_entropy", "binary_cross_entropy", "l1", "huber", "distillation", "distillation_mse"],
)
def test_fused_equals_autograd_for_every_loss(name: str) -> None:
    outputs = 1 if name == "binary_cross_entropy" else 3
    one, two = mlp(nn.ReLU, outputs), mlp(nn.ReLU, outputs)
    loss = build_loss(name, temperature=3.0, hard_weight=0.25)
    by_hand = FusedStep(one, loss, optimizer="Adam", optimizer_args={})
    by_torch = AutogradStep(two, loss, optimizer="Adam", optimizer_args={})
    assert train(by_hand, name) == train(by_torch, name)
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_engine_equals_a_plain_torch_loop() -> None:
    """The whole of ours against nothing of ours: textbook loss, autograd, torch.optim."""
    one, two = mlp(nn.ReLU, 3), mlp(nn.ReLU, 3)
    step = FusedStep(one, build_loss("mse"), optimizer="AdamW", optimizer_args={})
    train(step, "mse", steps=30)
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(two.parameters(), lr=1e-2, fused=True)
    for i in range(30):
        rows = 17 if i % 5 == 4 else 64
        features = torch.randn(rows, 8, generator=generator)
        optimizer.zero_grad()
        (wanted,) = targets("mse", rows)
        nn.functional.mse_loss(two(features), wanted).backward()
        optimizer.step()
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_built_in_mlp_trains_as_layers_that_share_no_memory() -> None:
    """Its activations write over their inputs; torch's own do not."""
    ours, theirs = built_in(8, 3, hidden=(32, 16)), mlp(nn.ReLU, 3)
    theirs.load_state_dict(ours.state_dict())
    for network in (ours, theirs):
        step = AutogradStep(network, build_loss("mse"), optimizer="Adam", optimizer_args={})
        train(step, "mse")
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("engine", ["called straight", "of a torch that has it elsewhere"])
def test_gradients_are_those_of_torch(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine != "called straight":
        monkeypatch.setattr(kernels, "_run_backward", None)
    network, idle = mlp(nn.Tanh, 3), torch.ones(2, 5, requires_grad=True)
    kernel = torch.randn(4, 8).t().requires_grad_()  # its gradient has its strides
    features, upstream = torch.randn(7, 8) @ kernel @ torch.randn(4, 8), torch.randn(7, 3)
    inputs = [*network.parameters(), kernel, idle]
    theirs = torch.autograd.grad(
        network(features), inputs, upstream, allow_unused=True, retain_graph=True
    )
    ours = kernels.gradients(network(features), upstream, inputs)
    assert all(gradient.is_contiguous() for gradient in ours)
    assert torch.equal(ours[-1], torch.zeros_like(idle))
    for mine, reference in zip(ours[:-1], theirs[:-1], strict=True):
        assert reference is not None
        assert torch.equal(mine, reference)


def test_state_travels_between_the_two_steps() -> None:
    one, two = mlp(nn.ReLU, 3), mlp(nn.ReLU, 3)
    fused = FusedStep(one, build_loss("mse"), optimizer="AdamW", optimizer_args={})
    train(fused, "mse", steps=10)
    autograd = AutogradStep(two, build_loss("mse"), optimizer="AdamW", optimizer_args={})
    autograd.load_state({name: tensor.clone() for name, tensor in fused.state().items()})
    two.load_state_dict(one.state_dict())
    assert train(fused, "mse", steps=5) == train(autograd, "mse", steps=5)


@pytest.mark.parametrize("optimizer", names())
def test_any_optimizer_resumes_from_its_state(optimizer: str) -> None:
    one, two = mlp(nn.ReLU, 3), mlp(nn.ReLU, 3)
    first = AutogradStep(one, build_loss("mse"), optimizer=optimizer, optimizer_args={})
    train(first, "mse", steps=7)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    weights = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    second = AutogradStep(two, build_loss("mse"), optimizer=optimizer, optimizer_args={})
    second.load_state(state)
    two.load_state_dict(weights)
    assert train(first, "mse", steps=7) == train(second, "mse", steps=7)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
@pytest.mark.parametrize("optimizer", sorted(ELEMENTWISE))
def test_clipping_is_the_same_in_both(activation: type[nn.Module], optimizer: str) -> None:
    one, two = mlp(activation, 3), mlp(activation, 3)
    loss = build_loss("mse")
    options: dict[str, Any] = {"optimizer": optimizer, "optimizer_args": {}, "clip": 0.05}
    fused, autograd = FusedStep(one, loss, **options), AutogradStep(two, loss, **options)
    assert train(fused, "mse", steps=30) == train(autograd, "mse", steps=30)
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Mixed(nn.Module):
    """Weights of one type, then ordinary ones: a Fourier operator has complex ones."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(16, 8).to(dtype))
        self.head = nn.Linear(16, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = features.to(self.weight.dtype) @ self.weight.T
        return self.head((hidden.abs() if hidden.is_complex() else hidden).float())


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
@pytest.mark.parametrize("optimizer", names())
def test_any_type_of_parameter_trains_as_in_plain_torch(
    optimizer: str, dtype: str, clip: float
) -> None:
    ours = Mixed(getattr(torch, dtype))
    theirs = deepcopy(ours)
    options: dict[str, Any] = {"optimizer": optimizer, "optimizer_args": {}, "clip": clip}
    if optimizer == "Adafactor" and dtype == "complex64":
        with pytest.raises(InvalidInput, match="complex"):
            AutogradStep(ours, build_loss("mse"), **options)
        return
    train(AutogradStep(ours, build_loss("mse"), **options), "mse", steps=10)
    kernel = {"fused": True} if optimizer in ("Adam", "AdamW", "SGD") else {}
    fused = kernel if dtype != "complex64" else {}
    torchs = getattr(torch.optim, optimizer)(theirs.parameters(), lr=1e-2, **fused)
    generator = torch.Generator().manual_seed(2)
    for i in range(10):
        rows = 17 if i % 5 == 4 else 64
        features = torch.randn(rows, 8, generator=generator)
        torchs.zero_grad()
        (wanted,) = targets("mse", rows)
        nn.functional.mse_loss(theirs(features), wanted).backward()
        if clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        torchs.step()
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("rows", [61, 64, 5])
@pytest.mark.parametrize("step", [AutogradStep, FusedStep], ids=["autograd", "fused"])
def test_shares_of_a_batch_add_up_to_the_whole(step: Any, rows: int) -> None:
    """A rate of 1 makes the update the gradient."""

    def moved(features: torch.Tensor, wanted: torch.Tensor, weight: float) -> torch.Tensor:
        network = mlp(nn.ReLU, 3)
        before = torch.cat([p.detach().flatten() for p in network.parameters()])
        trained = step(network, build_loss("mse"), optimizer="SGD", optimizer_args={})
        losses.append(trained((features, wanted), 1.0, weight))
        return before - torch.cat([p.detach().flatten() for p in network.parameters()])

    losses: list[torch.Tensor] = []
    features, (wanted,) = torch.randn(rows, 8), targets("mse", rows)
    whole = moved(features, wanted, 1.0)
    parts = [
        moved(one, two, len(one) * 3 / rows)
        for one, two in zip(features.tensor_split(3), wanted.tensor_split(3), strict=True)
    ]
    assert torch.allclose(torch.stack(parts).mean(0), whole, atol=1e-6)
    assert torch.allclose(torch.stack(losses[1:]).mean(), losses[0])


def test_gradients_of_every_type_are_averaged_in_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "average_", lambda flat, world: flat / world)
    given = [torch.randn(2, 3), torch.randn(4, dtype=torch.complex64), torch.randn(1).double()]
    averaged = steps._averaged([*given, torch.randn(3)], 2)
    for mine, one in zip(averaged, given, strict=False):
        assert mine.dtype == one.dtype
        assert torch.equal(mine, one / 2)


@pytest.mark.parametrize(
    ("network", "optimizer", "precision", "reason"),
    [
        (mlp(nn.ReLU, 1), "Adam", "bf16", "precision"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 1)),
            "Adam",
            "float32",
            "Dropout",
        ),
        (nn.Sequential(nn.Linear(2, 2, bias=False)), "Adam", "float32", "bias"),
        (nn.Linear(2, 2), "Adam", "float32", "plain MLP"),
        (mlp(nn.ReLU, 1), "Adafactor", "float32", "as a whole"),
    ],
    ids=["bf16", "dropout", "no-bias", "not-sequential", "adafactor"],
)
def test_what_the_fused_step_cannot_do_it_says(
    network: nn.Module, optimizer: str, precision: str, reason: str
) -> None:
    assert reason in why_not_fusible(network, optimizer=optimizer, precision=precision)
