"""A recorded step against the kernels themselves, by a recorder that a CPU can play.

A CUDA graph runs the kernels of one call again, on the same memory and with the numbers that the
host gave them then. `tape` does just that with torch's operators, and refuses what a graph cannot
hold: a number that travels to the host. What is left for a GPU to show is torch's own recorder
(`tests/gpu`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ended import dies_after, same_states
from test_steps import ACTIVATIONS, mlp, targets
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from typing_extensions import override

from kubestill.errors import InvalidInput
from kubestill.runtime.training import losses, step_choice
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.graphs import GraphedStep
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.optimizers import names
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.step_choice import build_step, check_step_path
from kubestill.runtime.training.steps import FusedStep

OPTIMIZERS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("Adam", {}, 0.0),
    ("Adam", {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}, 0.05),
    ("AdamW", {}, 0.05),
    ("SGD", {}, 0.0),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, 0.05),
)
"""Names, arguments, and where the gradient is clipped."""
TO_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Tape(TorchDispatchMode):
    """Keeps the operators of a call, each with where its results lie."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Any, Any, Any, list[Tensor]]] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_HOST:
            raise RuntimeError(f"{func} while a stream is captured")
        found = func(*args, **(kwargs or {}))
        results = [one for one in tree_flatten(found)[0] if isinstance(one, Tensor)]
        self.kept.append((func, args, kwargs or {}, results))
        return found


def tape(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record a call as a CUDA graph does, after calls that the recording is to undo."""
    work()
    with Tape() as recorded:
        result = work()

    def play() -> None:
        for func, args, kwargs, places in recorded.kept:
            found = tree_flatten(func(*args, **kwargs))[0]
            tensors = [one for one in found if isinstance(one, Tensor)]
            for place, tensor in zip(places, tensors, strict=True):
                if place.data_ptr() != tensor.data_ptr():
                    place.copy_(tensor)

    return result, play


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fused(network: nn.Sequential, loss: str, **options: Any) -> FusedStep:
    built = build_loss(loss, temperature=3.0, hard_weight=0.25)
    given = {"optimizer": "AdamW", "optimizer_args": {}} | options
    return FusedStep(network, built, **given)


def batches(loss: str, steps: int = 12) -> Iterator[tuple[tuple[Tensor, ...], float]]:
    """Yield batches of two sizes, each with a learning rate of its own."""
    generator = torch.Generator().manual_seed(2)
    for i in range(steps):
        rows = 17 if i % 5 == 4 else 64
        wanted = targets("mse" if loss == "relative_l2" else loss, rows)
        yield (torch.randn(rows, 8, generator=generator), *wanted), 1e-2 / (1 + i)


def follow(step: GraphedStep | FusedStep, loss: str, *, on_device: bool = False) -> list[Tensor]:
    def rate(value: float) -> Any:
        return torch.tensor(value) if on_device else value

    return [step(batch, rate(value)).clone() for batch, value in batches(loss)]


def silent(line: str) -> None:
    raise AssertionError(line)


def agree(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize(("optimizer", "args", "clip"), OPTIMIZERS, ids=str)
@pytest.mark.parametrize("loss", losses.NAMES)
def test_played_is_the_step_itself(
    loss: str, optimizer: str, args: dict[str, Any], clip: float
) -> None:
    outputs = 1 if loss == "binary_cross_entropy" else 3
    one, two, three = (mlp(nn.GELU, outputs) for _ in range(3))
    options = {"optimizer": optimizer, "optimizer_args": args, "clip": clip}
    graphed = GraphedStep(fused(one, loss, **options), silent, record=tape)
    by_kernel = fused(two, loss, **options)
    assert follow(graphed, loss) == follow(by_kernel, loss, on_device=True)
    assert agree(one, two)
    for mine, theirs in zip(graphed.state().values(), by_kernel.state().values(), strict=True):
        assert torch.equal(mine, theirs)
    # The rate's last bits apart, it is what `fused` gives.
    follow(fused(three, loss, **options), loss)
    for mine, theirs in zip(one.parameters(), three.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_every_activation_is_recorded(activation: type[nn.Module]) -> None:
    one, two = mlp(activation, 3), mlp(activation, 3)
    graphed = GraphedStep(fused(one, "mse"), silent, record=tape)
    assert follow(graphed, "mse") == follow(fused(two, "mse"), "mse", on_device=True)
    assert agree(one, two)


def test_a_number_of_the_host_would_be_noticed() -> None:
    """The tape against itself: with a rate that is no tensor, it goes on with the first."""
    one, two = mlp(nn.ReLU, 3), mlp(nn.ReLU, 3)
    step, places = fused(one, "mse"), None
    play: Callable[[], None] = lambda: None  # noqa: E731
    for batch, rate in batches("mse", 4):
        if places is None:
            begun = [t.clone() for t in (step.weights, *step.state().values())]
            places = batch
            _, play = tape(lambda b=batch, r=rate: step(b, r))
            for live, before in zip((step.weights, *step.state().values()), begun, strict=True):
                live.copy_(before)
        for place, tensor in zip(places, batch, strict=True):
            place.copy_(tensor)
        play()
    by_kernel = fused(two, "mse")
    for batch, rate in batches("mse", 4):
        by_kernel(batch, rate)
    assert not agree(one, two)


def _fails(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    work()
    raise RuntimeError("operation not permitted when stream is capturing")


def _other_bits(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    result, play = tape(work)

    def wrong() -> None:
        play()
        result.mul_(1.0 + 2**-23)

    return result, wrong


@pytest.mark.parametrize(
    ("record", "why"), [(_fails, "stream is capturing"), (_other_bits, "gave other bits")]
)
def test_what_cannot_be_recorded_is_taken_kernel_by_kernel(record: Any, why: str) -> None:
    one, two, said = mlp(nn.ReLU, 3), mlp(nn.ReLU, 3), list[str]()
    graphed = GraphedStep(fused(one, "mse"), said.append, record=record)
    assert follow(graphed, "mse") == follow(fused(two, "mse"), "mse", on_device=True)
    assert agree(one, two)
    assert len(said) == 2  # once for each size of batch
    assert all(why in line for line in said)


def test_a_step_resumes_from_its_state_after_it_was_recorded() -> None:
    one, two = mlp(nn.ReLU, 3), mlp(nn.ReLU, 3)
    first = GraphedStep(fused(one, "mse"), silent, record=tape)
    follow(first, "mse")
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    weights = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    second = GraphedStep(fused(two, "mse"), silent, record=tape)
    follow(second, "mse")  # it has recorded, and has other state than is restored
    second.load_state(state)
    two.load_state_dict(weights)
    assert follow(first, "mse") == follow(second, "mse")


def test_a_graph_needs_a_gpu() -> None:
    network = mlp(nn.ReLU, 3)
    settings = TrainingSettings(step_path="graph")
    with pytest.raises(InvalidInput, match="needs a GPU.*use 'auto'"):
        check_step_path(network, settings, Machine(device=torch.device("cpu"), precision="float32"))
    # A run that began with one goes on without, where its pod has lost the GPU.
    machine, loss = Machine(device=torch.device("cpu"), precision="float32"), build_loss("mse")
    name, _ = build_step(network, loss, TrainingSettings(), machine, path="graph")
    assert name == "fused"


def test_processes_that_somebody_else_started_have_no_graph() -> None:
    machine = Machine(device=torch.device("cuda"), precision="float32")
    settings, network = TrainingSettings(step_path="graph"), mlp(nn.ReLU, 3)
    with pytest.raises(InvalidInput, match="one process's"):
        build_step(network, build_loss("mse"), settings, machine, world_size=2)


@pytest.mark.parametrize("optimizer", sorted({*names()} - {"Adam", "AdamW", "SGD"}))
def test_an_optimizer_without_a_kernel_has_no_graph(optimizer: str) -> None:
    settings = TrainingSettings(step_path="graph", optimizer=optimizer)
    machine = Machine(device=torch.device("cuda"), precision="float32")
    with pytest.raises(InvalidInput, match=r"use 'auto' or 'autograd'"):
        check_step_path(mlp(nn.ReLU, 3), settings, machine)


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer_args": {"amsgrad": True}},
        {"virtual_workers": 2},
        {"virtual_workers": 2, "processes": 2},
        {"recompute": "auto"},
        {"shard": "auto", "virtual_workers": 2},
    ],
    ids=str,
)
def test_what_has_no_graph(given: dict[str, Any]) -> None:
    machine = Machine(device=torch.device("cuda"), precision="float32")
    with pytest.raises(InvalidInput, match=r"step_path"):
        check_step_path(mlp(nn.ReLU, 3), TrainingSettings(step_path="graph", **given), machine)


def test_an_interrupted_run_of_recorded_steps_ends_with_the_same_bits(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "step_path": "graph",
        "milestone_every": 10,
        "milestone_unit": "steps",
        "ema_decay": 0.9,
        "threads": 1,
    }
    monkeypatch.setattr(step_choice, "_why_no_graph", lambda *_: "")
    monkeypatch.setattr(step_choice, "GraphedStep", partial(GraphedStep, record=tape))
    run = partial(train, settings=settings, schedule="CosineAnnealingLR")
    calm = run("calm", checkpoint_uri=str(tmp_path / "elsewhere"))
    with dies_after(27):
        run("hit")
    hit = run("hit")
    same_states(calm, hit)
    assert json.loads((hit / "model" / "training.json").read_text())["step_path"] == "graph"
