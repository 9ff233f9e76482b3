"""What only a GPU can show: the fused step and its graph, bf16, a resume with the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.training.graphs import GraphedStep, cuda_graph
from kubestill.runtime.training.losses import build_loss
from kubestill.runtime.training.steps import FusedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # The first call of cuBLAS in a process warns that it makes its context.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    root = tmp_path_factory.mktemp("digits")
    names = ("dataset", "validation", "holdout", "report", "summary")
    ports: dict[str, Any] = {n: LocalArtifact(str(root / n)) for n in names}
    import_dataset(source="digits", **ports)
    return ports


class Interrupted(Exception):
    """Stands for a pod that is taken away."""


def train(
    data: dict[str, LocalArtifact], root: Path, *, until: int | None = None, **options: Any
) -> LocalArtifact:
    names = ("model", "ledger", "metrics", "report", "summary")
    out: dict[str, Any] = {name: LocalArtifact(str(root / name)) for name in names}
    settings = {"milestone_every": 20, "milestone_unit": "steps"} | options.pop("settings", {})
    base: dict[str, Any] = {"epochs": 10, "device": "cuda", "network_args": {"hidden": [64]}}
    with pytest.MonkeyPatch.context() as patch:
        if until:
            _interrupt_after(patch, until)
        train_teacher(
            dataset=data["dataset"],
            validation=data["validation"],
            checkpoint_uri=str(root / "store"),
            settings=settings,
            **(base | options),
            **out,
        )
    return out["model"]


def _interrupt_after(patch: pytest.MonkeyPatch, milestones: int) -> None:
    from kubestill.runtime.training.engine import Trainer

    whole, seen = Trainer._milestone, []

    def milestone(trainer: Trainer) -> None:
        whole(trainer)
        seen.append(trainer.step)
        if len(seen) == milestones:
            raise Interrupted

    patch.setattr(Trainer, "_milestone", milestone)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"network_args": {"hidden": [64], "dropout": 0.3}},
        {"settings": {"precision": "fp16"}},
        {"settings": {"precision": "float32", "ema_decay": 0.9}},
        {"settings": {"precision": "float32", "step_path": "graph"}},
    ],
    ids=["bf16", "dropout", "fp16-scaler", "fused-float32-ema", "graph"],
)
def test_an_interrupted_training_ends_with_the_same_bits(
    data: dict[str, LocalArtifact], tmp_path: Path, options: dict[str, Any]
) -> None:
    calm = train(data, tmp_path / "calm", **options)
    with pytest.raises(Interrupted):
        train(data, tmp_path / "hit", until=2, **options)
    resumed = train(data, tmp_path / "hit", **options)
    one, two = load_model(calm.path).model.state_dict(), load_model(resumed.path).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_all_steps_agree_on_the_gpu(data: dict[str, LocalArtifact], tmp_path: Path) -> None:
    models = [
        load_model(
            train(
                data,
                tmp_path / path,
                settings={"step_path": path, "precision": "float32"},
            ).path
        ).model.state_dict()
        for path in ("fused", "autograd", "graph")
    ]
    for name, tensor in models[0].items():
        for other in models[1:]:
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["mse", "huber", "distillation_mse"])
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
def test_a_cuda_graph_is_recorded_and_gives_the_bits_of_its_kernels(
    loss: str, optimizer: str
) -> None:
    def refuse(work: Callable[[], torch.Tensor]) -> Any:
        raise RuntimeError("told not to")

    torch.manual_seed(0)
    rows = [(torch.randn(n, 8).cuda(), torch.randn(n, 3).cuda()) for n in (64, 64, 17, 64)]
    found: list[list[torch.Tensor]] = []
    for record, wanted in ((cuda_graph, 0), (refuse, 2)):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 3)).cuda()
        step = FusedStep(
            network, build_loss(loss), optimizer=optimizer, optimizer_args={}, clip=0.1
        )
        said: list[str] = []
        graphed = GraphedStep(step, said.append, record=record)
        losses = [
            graphed((x, *([y, y] if loss.startswith("distil") else [y])), 0.01 / (1 + i))
            for i, (x, y) in enumerate(rows * 5)
        ]
        assert len(said) == wanted, said
        found.append([*losses, *(p.detach() for p in network.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
