"""A teacher beside its student in each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from ended import dies_after, last_state, same_states
from torch import Tensor, nn

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.builtin import digits
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.datasets.handover import write_dataset
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.choose_student import choose_student
from kubestill.runtime.steps.import_model import import_model
from kubestill.runtime.steps.label_with_teacher import label_with_teacher
from kubestill.runtime.steps.train_student import train_student
from kubestill.runtime.steps.train_teacher import train_teacher
from kubestill.runtime.training.batches import Batches, Order
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.imitate import ImitateSettings
from kubestill.runtime.training.imitation import Imitation, build_imitating_step
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.parts import Seen
from kubestill.runtime.training.prepare import Prepared, prepare
from kubestill.runtime.training.record import read_training
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.teachers import Teacher

CPU = Machine(device=torch.device("cpu"), precision="float32")
SMALL = {"network": "conv", "network_args": {"channels": [4, 8]}}
EVERYTHING: dict[str, Any] = {
    "features": {"weight": 1.0, "layers": {"body.5": "body.5", "body.12": "body.12"}},
    "attention": {"weight": 100.0, "layers": {"body.5": "body.12"}},
    "relations": {"weight": 1.0},
    "dkd": {"weight": 0.1},
    "own": {"test_imitation:Cosine": {"layers": {"body.12": "body.12"}, "args": {"width": 8}}},
}


class Cosine(nn.Module):
    """A part of a user's, which learns a map of its own."""

    def __init__(self, width: int, channels: int = 16):
        super().__init__()
        self.map = nn.Linear(width, channels)

    def forward(self, student: Seen, teacher: Seen, targets: tuple[Tensor, ...]) -> Tensor:
        (own,), (theirs,) = student.layers.values(), teacher.layers.values()
        return 1 - F.cosine_similarity(self.map(own.mean((2, 3))), theirs.mean((2, 3)))


def takes_its_mean() -> Any:
    return lambda student, teacher, targets: student.outputs.mean()


def artifact(path: Path, kind: str = "dataset") -> Any:
    return LocalArtifact(str(path), metadata={"kind": kind})


def ports(out: Path) -> dict[str, Any]:
    names = ("model", "ledger", "metrics", "report", "summary")
    return {name: LocalArtifact(str(out / name)) for name in names}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a teacher of half of them, so that it scales images otherwise, and its answers."""
    root = tmp_path_factory.mktemp("taught")
    write_dataset(digits()[:300], str(root / "rows"), target="digit")
    write_dataset(digits()[100:250], str(root / "half"), target="digit")
    out = ports(root / "teacher")
    train_teacher(
        dataset=artifact(root / "half"),
        network="conv",
        network_args={"channels": [8, 16]},
        steps=40,
        batch_size=32,
        checkpoint_uri=str(root / "store"),
        **out,
    )
    label_with_teacher(
        model=out["model"], dataset=artifact(root / "rows"), labelled=artifact(root / "labelled")
    )
    return root


def teach(taught: Path, out: Path, **given: Any) -> Path:
    """Train a student of that teacher; return its output folder."""
    teacher = artifact(taught / "teacher" / "model", "model")
    parameters = {**SMALL, "teacher": teacher, "steps": 24, "batch_size": 50, **given}
    parameters.setdefault("checkpoint_uri", str(out / "store"))
    train_student(dataset=artifact(taught / "labelled"), **parameters, **ports(out))
    return out


def weights(out: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(out / "model" / "model.safetensors")


def same(these: Mapping[str, Tensor], those: Mapping[str, Tensor]) -> bool:
    return these.keys() == those.keys() and all(torch.equal(these[n], those[n]) for n in these)


def dies_and_goes_on(taught: Path, folder: Path, settings: Mapping[str, Any]) -> tuple[Path, Path]:
    """Train undisturbed, and with a death within an epoch: both end with the same bits."""
    whole = teach(taught, folder / "whole", settings=settings)
    with dies_after(8):
        teach(taught, folder / "resumed", settings=settings)
    resumed = teach(taught, folder / "resumed", settings=settings, resume="must")
    assert same(weights(resumed), weights(whole))
    same_states(resumed, whole)
    return whole, resumed


@pytest.mark.parametrize("workers", [1, 2])
def test_dying_within_an_epoch_costs_no_bit(taught: Path, tmp_path: Path, workers: int) -> None:
    settings = {
        "imitate": EVERYTHING,
        "augment": {"shift": 1, "rotation": 10, "mixup": 0.3},
        "ema_decay": 0.9,
        "virtual_workers": workers,
    }
    whole, resumed = dies_and_goes_on(taught, tmp_path, settings)
    state = {name for name in last_state(whole).tensors if "imitation" in name}
    # Two maps of the features and one of the user's, each with its weight, bias and moments.
    assert len([name for name in state if name.startswith("imitation/")]) == 6
    assert {name.split("/")[0] for name in state} == {"imitation", "optimizer"}
    assert not any("imitation" in name for name in weights(whole))
    records = [read_training(str(out / "model")) for out in (whole, resumed)]
    # The one that died scored no milestone before.
    assert [r.curves.train[-16:] for r in records if r] == [records[0].curves.train[8:]] * 2  # pyright: ignore


REMEMBERING: dict[str, Any] = {
    "contrast": {"weight": 0.1, "layers": {"body.12": "body.12"}, "dim": 8, "negatives": 50},
    "consistency": {"weight": 1.0, "noise": 0.2},
}


@pytest.mark.parametrize(
    ("imitate", "share", "workers"),
    [
        (REMEMBERING, 0.0, 1),
        ({"consistency": {"weight": 1.0}, "attention": EVERYTHING["attention"]}, 0.6, 2),
        (REMEMBERING, 0.6, 1),
    ],
    ids=["remembering", "8 bits, 2 workers", "8 bits, remembering"],
)
def test_what_remembers_rows_or_ranges_dies_and_costs_no_bit(
    taught: Path, tmp_path: Path, imitate: dict[str, Any], share: float, workers: int
) -> None:
    settings = {
        "imitate": imitate,
        "quantise_aware": share,
        "augment": {"shift": 1},
        "ema_decay": 0.9,
        "virtual_workers": workers,
    }
    whole, _ = dies_and_goes_on(taught, tmp_path, settings)
    names = set(last_state(whole).tensors)
    assert ("imitation/part0.memory" in names) == ("contrast" in imitate)
    assert ("model/network.head.entry.low" in names) == bool(share)
    record = read_training(str(whole / "model"))
    assert record
    costs = record.curves.train[-1].costs
    assert list(costs) == [
        "distillation",
        *(n for n in ImitateSettings.model_fields if n in imitate),
    ]
    assert all(cost > 0 for cost in costs.values())


PRUNED: dict[str, Any] = {"settings": {"prune": {"parameters": 1800}}, "network_args": {}}


def test_a_student_begins_as_its_teacher_with_fewer_units(taught: Path, tmp_path: Path) -> None:
    given = {**PRUNED, "settings": {**PRUNED["settings"], "quantise_aware": 0.5}}
    whole = teach(taught, tmp_path / "whole", **given)
    with dies_after(16):
        teach(taught, tmp_path / "resumed", **given)
    resumed = teach(taught, tmp_path / "resumed", **given, resume="must")
    assert same(weights(resumed), weights(whole))
    plain = teach(taught, tmp_path / "plain", **PRUNED)
    found = load_model(str(plain / "model"))
    assert 1500 < found.spec.parameters <= 1800
    channels = found.spec.network["args"]["channels"]
    fresh = teach(taught, tmp_path / "fresh", network_args={"channels": channels})
    records = [read_training(str(out / "model")) for out in (plain, fresh)]
    first, second = (record.curves.train[0].loss for record in records if record)
    assert first < second
    names = ("model", "metrics", "report", "summary", "record")
    outputs: Any = {name: LocalArtifact(str(tmp_path / "chosen" / name)) for name in names}
    _, _, args = choose_student(
        uris=[str(plain / "model")],
        teacher=artifact(taught / "teacher" / "model", "model"),
        dataset=artifact(taught / "rows"),
        **outputs,
    )
    assert args == {"channels": channels}  # for a control of its size
    small, large = read_record(outputs["record"])["models"].values()
    assert small["bytes"] < large["bytes"] / 2
    parts = {"imitate": {"relations": {"weight": 1.0}}, **PRUNED["settings"]}
    both = teach(taught, tmp_path / "both", settings=parts, network_args={})
    record = read_training(str(both / "model"))
    assert record
    assert list(record.curves.train[-1].costs) == ["distillation", "relations"]


def test_the_report_shows_what_the_loss_consists_of(taught: Path, tmp_path: Path) -> None:
    out = teach(taught, tmp_path, settings={"imitate": EVERYTHING})
    record = read_training(str(out / "model"))
    assert record
    names = ["distillation", "features", "attention", "relations", "dkd", "test_imitation:Cosine"]
    for point in record.curves.train:
        assert list(point.costs) == names
        assert point.loss == pytest.approx(sum(point.costs.values()), rel=1e-5)
    assert record.curves.train[-1].costs["features"] < record.curves.train[0].costs["features"]
    assert "what the training loss consists of" in (out / "report").read_text()
    for name in names:
        assert name in (out / "report").read_text()


def test_a_run_that_needs_no_teacher_is_the_same_with_one(taught: Path, tmp_path: Path) -> None:
    alone = teach(taught, tmp_path / "alone", teacher=None)
    beside = teach(taught, tmp_path / "beside")
    assert same(weights(alone), weights(beside))
    records = [read_training(str(out / "model")) for out in (alone, beside)]
    assert len({record.fingerprint for record in records if record}) == 1
    assert records[0]
    assert not records[0].curves.train[-1].costs


def test_the_control_leaves_out_what_its_student_imitates(taught: Path, tmp_path: Path) -> None:
    settings = {"imitate": EVERYTHING}
    plain = teach(taught, tmp_path / "plain", mode="hard", teacher=None)
    control = teach(taught, tmp_path / "control", mode="hard", settings=settings)
    assert same(weights(plain), weights(control))


def prepared(taught: Path, **settings: Any) -> tuple[Prepared, TrainingSettings, Imitation]:
    given = TrainingSettings(**{**SMALL, "batch_size": 20, "temperature": 3.0, **settings})
    dataset = Dataset.open(str(taught / "labelled"))
    teacher = load_model(str(taught / "teacher" / "model")).model
    made = prepare(dataset, None, given, CPU, loss_name="distillation", teacher=teacher)
    assert made.imitation
    return made, given, made.imitation


@pytest.mark.parametrize("augment", [{"shift": 2}, {"rotation": 30, "mixup": 0.5}, {"cutmix": 1.0}])
def test_a_changed_image_has_the_teacher_s_answer_to_it(
    taught: Path, augment: dict[str, Any]
) -> None:
    made, given, imitation = prepared(taught, augment=augment, hard_weight=0.3)
    order = Order(rows=300, batch_size=20, seed=1, shuffle="full", window_rows=40)
    _, (features, *told) = next(Batches(made.rows, order, made.change).starting_at(3))
    _, (soft, _) = imitation.ask(tuple(told))
    column = made.model.encoder.columns[0]
    raw = features * column.std[0] + column.mean[0]
    teacher = load_model(str(taught / "teacher" / "model"))
    answers = teacher.logits(raw.numpy()) / given.temperature
    np.testing.assert_allclose(soft.numpy(), torch.softmax(torch.tensor(answers), 1), atol=1e-5)
    stored = told[0]
    assert (soft - stored).abs().max() > 0.01


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hard_weight", [0.0, 0.4])
def test_a_step_follows_the_gradient_of_the_sum(
    taught: Path, weighted: bool, hard_weight: float
) -> None:
    classes = {"class_weights": {"3": 5.0, "7": 0.5}} if weighted else {}
    made, given, imitation = prepared(
        taught, imitate=EVERYTHING, hard_weight=hard_weight, **classes
    )
    network = made.model.network.train()
    _, step = build_imitating_step(imitation, network, made.loss, given, CPU)
    features, *told = made.rows.between(0, 20)
    values, found = step.gradient((features, *told))
    raw = dict(network.named_modules())
    layers: dict[str, Tensor] = {}
    for name in ("body.5", "body.12"):
        raw[name].register_forward_hook(lambda m, g, made, name=name: layers.update({name: made}))
    outputs = network(features)
    teacher, told = imitation.ask(tuple(told))
    own = Seen(outputs=outputs, layers=layers)
    parts = imitation.costs(own, teacher, told)
    counts = told[-1] if weighted else torch.ones(20)
    soft, labels = told[0], told[1]
    kl = F.kl_div(torch.log_softmax(outputs / 3.0, 1), soft, reduction="none").sum(1) * 9
    hard = F.cross_entropy(outputs, labels, reduction="none")
    main = (((1 - hard_weight) * kl + hard_weight * hard) * counts).mean()
    total = main + sum(parts)
    parameters = [*network.parameters(), *imitation.learned.parameters()]
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    torch.testing.assert_close(values, torch.stack([total, main, *parts]).detach())
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs if theirs is not None else torch.zeros_like(mine))
    if weighted:
        (each,) = [part for part in imitation.parts if part.name == "attention"]
        cost = 100.0 * (each(own, teacher, told[:-1]) * counts).mean()
        torch.testing.assert_close(parts[imitation.names.index("attention")], cost)


def refused(taught: Path, tmp_path: Path, **given: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        teach(taught, tmp_path, **given)
    assert not (tmp_path / "store").exists(), "nothing was begun"
    return str(caught.value)


CONTRAST = {"contrast": REMEMBERING["contrast"]}
FEATURES = {"imitate": {"features": {"weight": 1.0, "layers": {"body.5": "body.5"}}}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"settings": {"imitate": {"features": {"weight": 1, "layers": {"boddy.5": "body.5"}}}}},
            "the student has no such layer; did you mean 'body.5'",
        ),
        (
            {"settings": {"imitate": {"attention": {"weight": 1, "layers": {"body.5": "hed"}}}}},
            "the teacher has no such layer; did you mean 'head'",
        ),
        (
            {"settings": {"imitate": {"attention": {"weight": 1, "layers": {"head": "head"}}}}},
            "have no grid to look at",
        ),
        (
            {"settings": {"imitate": {"features": {"weight": 1, "layers": {"head": "body.5"}}}}},
            "'[10] and [8, 8, 8]': have different numbers of dimensions",
        ),
        ({"settings": {"imitate": {"features": {"weight": 1}}}}, "name at least one pair"),
        ({"settings": {"imitate": {"features": {"wieght": 1}}}}, "did you mean 'weight'"),
        ({"settings": {"imitate": {"features": {"weight": -1}}}}, "0 or more"),
        ({"settings": FEATURES, "teacher": None}, "connect `teacher`"),
        ({"settings": {"augment": {"shift": 1}}, "teacher": None}, "connect `teacher`"),
        ({"settings": {**FEATURES, "step_path": "fused"}}, "the fused step has no room"),
        ({"settings": {**FEATURES, "finish_steps": 2}}, "L-BFGS minimises the loss of the answers"),
        (
            {"settings": {"imitate": {"relations": {"weight": 1}}}, "batch_size": 4096},
            "use at most 512 a batch",
        ),
        (
            {"settings": {"imitate": {"own": {"test_imitation:Cosine": {}}}}},
            "own['test_imitation:Cosine'].args.width = 'missing'",
        ),
        (
            {"settings": {"imitate": {"own": {"test_imitation:takes_its_mean": {}}}}},
            "gives [] for 2 rows; return the cost of each row, [2]",
        ),
        (
            {"settings": {"imitate": {"own": {"test_imitation:Cosine": {"args": {"width": 3}}}}}},
            "raised on two rows ValueError",
        ),
        (
            {"settings": {"imitate": {"own": {"test_imitation:Missing": {}}}}},
            "has no 'Missing'",
        ),
        ({"settings": {"imitate": {"contrast": {"weight": 1}}}}, "name at least one pair"),
        (
            {"settings": {"imitate": CONTRAST, "virtual_workers": 2}},
            "its memory of rows is one process's",
        ),
        (
            {"settings": {"imitate": CONTRAST, "augment": {"mixup": 0.2}}},
            "a mixture of images is no row to remember",
        ),
        ({"settings": {"imitate": CONTRAST}, "teacher": None}, "connect `teacher`"),
        ({**PRUNED, "teacher": None}, "begins as the teacher; connect `teacher`"),
        ({**PRUNED, "settings": {"prune": {"bytes": 40}}}, "where each layer has one unit"),
        ({**PRUNED, "settings": {"prune": {"bytes": 1 << 20}}}, "parameters; give fewer"),
        ({**PRUNED, "network_args": {"channels": [4]}}, "the teacher brings the network"),
        ({**PRUNED, "network": "tabm"}, "the teacher is a conv, and the student begins as it"),
        (
            {**PRUNED, "settings": {**PRUNED["settings"], "initial_weights": "/tmp/weights"}},
            "the student begins with the teacher's weights",
        ),
        ({**PRUNED, "mode": "overfit"}, "only train-student in mode 'distil'"),
        ({"settings": {"imitate": {"consistency": {"weight": 1, "drop": 1}}}}, "in [0, 1)"),
        ({"settings": FEATURES, "mode": "overfit"}, "only train-student in mode 'distil'"),
    ],
)
def test_what_cannot_be_imitated_is_refused_before_training(
    taught: Path, tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    assert says in refused(taught, tmp_path, **given)


class Flat(Teacher):
    """A teacher of a user's that finds all digits alike."""

    inputs = ("image",)
    classes = tuple("0123456789")
    output = "logit"

    def predict(self, rows: Any) -> np.ndarray:
        return np.zeros((len(rows), 10), np.float32)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (FEATURES, "and cannot stand beside the student, as imitate.features needs"),
        ({"augment": {"shift": 1}}, "let generate-synthetic change the images"),
    ],
    ids=["imitate", "augment"],
)
def test_a_foreign_teacher_has_no_layers(
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setenv("KUBESTILL_TRUST", "test_imitation")
    model = LocalArtifact(str(tmp_path / "flat"), metadata={})
    names = ("metrics", "report", "summary")
    outputs: Any = {name: LocalArtifact(str(tmp_path / name)) for name in names}
    rows = artifact(taught / "rows")
    import_model(source="test_imitation:Flat", dataset=rows, model=model, **outputs)
    assert says in refused(taught, tmp_path / "out", settings=settings, teacher=model)


def test_layers_that_do_not_say_what_they_give_are_refused(taught: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"network": "test_imitation:Odd", "network_args": {}}
    for layer, why in (
        ("first", "is overwritten by the layer behind it, which works in place"),
        ("twice", "runs more than once for a batch"),
        ("pair", "gives a tuple"),
        ("unused", "does not run when the network answers"),
    ):
        settings = {"imitate": {"features": {"weight": 1, "layers": {layer: "body.5"}}}}
        assert f"this layer of the student {why}" in refused(
            taught, tmp_path / layer, settings=settings, **given
        )


class Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


class Odd(nn.Module):
    """A network whose layers cannot be looked at."""

    reads = "2d"

    def __init__(self, in_channels: int, out_features: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 4, 3), nn.ReLU(inplace=True)
        self.twice, self.pair, self.unused = nn.Conv2d(4, 4, 1), Pair(), nn.Linear(1, 1)
        self.head = nn.Linear(4, out_features)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.first(images))
        hidden, _ = self.pair(self.twice(self.twice(hidden)))
        return self.head(hidden.mean((2, 3)))


def test_only_students_imitate(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="only train-student in mode 'distil' has a teacher"):
        train_teacher(
            dataset=artifact(taught / "rows"), settings=FEATURES, **SMALL, **ports(tmp_path)
        )


def test_processes_that_share_a_step_imitate_alike(taught: Path) -> None:
    """Two micro-batches, by one process or as each alone gives them."""
    made, given, imitation = prepared(taught, imitate=EVERYTHING, virtual_workers=2)
    _, step = build_imitating_step(imitation, made.model.network.train(), made.loss, given, CPU)
    whole = MicroBatches(step, made.model.network, leaves=2, seed=0)
    order = Order(
        rows=300, batch_size=20, seed=1, shuffle="full", window_rows=40, virtual_workers=2
    )
    part, batch = next(Batches(made.rows, order, made.change).starting_at(0))
    before = {name: tensor.clone() for name, tensor in made.model.network.state_dict().items()}
    halves = []
    for half in (slice(0, 10), slice(10, 20)):
        made.model.network.load_state_dict(before)
        halves.append(step.gradient(tuple(tensor[half] for tensor in batch), 0.5)[0])
    made.model.network.load_state_dict(before)
    torch.testing.assert_close(whole(batch, 1e-3, part), halves[0] + halves[1])
