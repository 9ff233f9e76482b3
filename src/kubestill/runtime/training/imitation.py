"""Have the teacher beside the student in each step: its layers, and its answers to changed images.

Layers are read by hooks that live for one forward pass, so that nothing of this is in the network
that is scored, saved and exported. The teacher gets the rows in its own encoding, which travels
with each batch as the last of its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from kubestill.errors import InvalidInput, Problem, Problems, nearest
from kubestill.runtime.base.arguments import fit_arguments, import_factory
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.training.blocks import module_names, recomputing
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.imitate import ContrastSettings
from kubestill.runtime.training.kernels import gradients
from kubestill.runtime.training.losses import Loss, Targets, differentiable
from kubestill.runtime.training.parts import (
    Attention,
    Consistency,
    Contrast,
    DecoupledDistillation,
    Features,
    Part,
    Relations,
    Seen,
)
from kubestill.runtime.training.settings import TrainingSettings
from kubestill.runtime.training.steps import AutogradStep, Batch

Answer = Callable[[Tensor], Tensor]

_ALONE = ("dkd", "consistency")
"""Parts that need no teacher beside the student."""
_MOST_SCORES = 1 << 28
"""Scores of a batch against all rows: 1 GB."""
_MOST_ANGLES = 512
"""Rows whose angles take 1 GB, in float64, each time that they are held."""


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """A part, and what it counts."""

    name: str
    weight: float
    layers: Mapping[str, str]
    """Layers that it is shown: the student's name of each, and the teacher's."""
    part: Part

    def __call__(self, student: Seen, teacher: Seen | None, targets: Targets) -> Tensor:
        """Return the cost of each row [B], unweighted."""
        mine = _only(student, self.layers.keys())
        return self.part(mine, teacher and _only(teacher, self.layers.values()), targets)


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """What a student imitates of its teacher in each step."""

    parts: tuple[Weighed, ...]
    learned: nn.ModuleDict
    """What learns with the student, by the names of parts."""
    layers: Mapping[str, nn.Module]
    """Layers of the student that are looked at, by their names."""
    teacher: nn.Module | None = None
    """The teacher's network; None where the answers that are stored with the rows will do."""
    teacher_layers: Mapping[str, nn.Module]
    """Layers of the teacher that are looked at."""
    answer: Answer | None = None
    """Turns the teacher's outputs into the first target; None leaves the one that is stored."""
    weighted: bool = False
    """Whether the last of the loss's targets is a weight for each row."""
    numbered: bool = False
    """Whether the numbers of the rows follow the loss's targets."""
    change: Callable[[Tensor], Tensor] | None = None
    """Changes features at random, where the answers to both are compared."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in the order of their costs."""
        return tuple(part.name for part in self.parts)

    def ask(self, targets: Targets) -> tuple[Seen | None, Targets]:
        """Return what the teacher makes of the rows, and what the loss is told of them.

        Args:
            targets: What the loss is told, the numbers of the rows where they are asked for, and
                last the rows as the teacher reads them.
        """
        if self.teacher is None:
            return None, targets
        *given, features = targets
        rows = given.pop() if self.numbered else None
        with torch.no_grad(), watch(self.teacher_layers) as layers:
            outputs = self.teacher(features)
        seen = replace(_seen(outputs, layers), rows=rows)
        if self.answer is not None:
            given[0] = self.answer(seen.outputs)
        return seen, tuple(given)

    def costs(self, student: Seen, teacher: Seen | None, targets: Targets) -> list[Tensor]:
        """Return the weighted mean of each part over the rows, [] each."""
        given, counts = (targets[:-1], targets[-1]) if self.weighted else (targets, None)
        found: list[Tensor] = []
        for part in self.parts:
            each = part(student, teacher, given)
            found.append(part.weight * (each if counts is None else each * counts).mean())
        return found


class ImitatingStep(AutogradStep):
    """A step of any network by autograd, with a teacher beside it.

    Args:
        network: Trained in place.
        loss: Of the answers.
        imitation: What is added to it.
        options: As of `AutogradStep`.
    """

    def __init__(self, network: nn.Module, loss: Loss, imitation: Imitation, **options: Any):
        learned = {f"imitation.{name}": p for name, p in imitation.learned.named_parameters()}
        super().__init__(network, loss, beside=learned, **options)
        self._imitation = imitation

    @override
    def gradient(self, batch: Batch, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """Return (values [2 + P], gradients): the sum, the loss of the answers, and each part."""
        features, *targets = batch
        imitation = self._imitation
        with self._autocast():
            teacher, told = imitation.ask(tuple(targets))
            with watch(imitation.layers) as layers, self._around():
                outputs = self._network(features)
            changed = self._changed(features)
        answers = differentiable(self._loss, outputs, told)
        student = replace(_seen(outputs, layers), changed=changed)
        parts = imitation.costs(student, teacher, told)
        total = torch.stack([answers, *parts]).sum()
        upstream = torch.full_like(total, weight)
        if self._scaler is not None:
            upstream = upstream * self._scaler.scale
        values = torch.stack([total, answers, *parts]).detach() * weight
        return values, gradients(total, upstream, self._parameters)

    def _changed(self, features: Tensor) -> Tensor | None:
        """Return the outputs for rows changed at random; None where nobody compares them."""
        change = self._imitation.change
        if change is None:
            return None
        with self._around():
            return self._network(change(features)).float()


def build_imitating_step(
    imitation: Imitation,
    network: nn.Module,
    loss: Loss,
    settings: TrainingSettings,
    machine: Machine,
    *,
    path: str | None = None,
    world_size: int = 1,
) -> tuple[str, ImitatingStep]:
    """Return ("autograd", the step): what `build_step` does, with a teacher beside the student.

    Every path is this one.
    """
    step = ImitatingStep(
        network,
        loss,
        imitation,
        optimizer=settings.optimizer,
        optimizer_args=settings.optimizer_args,
        clip=settings.gradient_clip,
        precision=machine.precision,
        world_size=world_size,
        around=recomputing(network, settings.recompute) if settings.recompute else nullcontext,
    )
    return "autograd", step


def needs_teacher(settings: TrainingSettings) -> str:
    """Return the first setting for which a student needs its teacher in each step, or ""."""
    if settings.augment.describe():
        return "augment"
    asked = settings.imitate.asked()
    return next((f"imitate.{name}" for name in asked if name not in _ALONE), "")


def build_imitation(
    network: nn.Module,
    teacher: nn.Module | None,
    settings: TrainingSettings,
    *,
    task: str,
    features: Tensor,
    teacher_features: Tensor | None = None,
    answer: Answer | None = None,
    weighted: bool = False,
    rows: int = 2,
    scaled: int = 0,
    plain: int = 0,
) -> Imitation | None:
    """Return what the settings ask a student to imitate; None where that is nothing.

    Args:
        network: Of the student; a few rows go through it.
        teacher: Its network, where `needs_teacher` says so; the rows go through it, too.
        settings: Of the training run.
        task: `regression`, `binary` or `multiclass`.
        features: Two rows as the student reads them.
        teacher_features: The same rows as the teacher reads them.
        answer: As of `Imitation`, where the rows are changed at random.
        weighted: As of `Imitation`.
        rows: Rows of the dataset.
        scaled: How many of the student's features are numbers, the first ones.
        plain: How many are numbers or marks; codes and ids follow.

    Raises:
        InvalidInput: A layer is not there (with the nearest), or gives what a part cannot compare;
            all of it.
    """
    asked = settings.imitate.asked()
    if not asked and answer is None:
        return None
    problems = Problems()
    own, theirs = _Layers(network, "student"), None
    if teacher is not None:
        theirs = _Layers(teacher, "teacher")
    for name, part in asked.items():
        for mine, wanted in getattr(part, "layers", {}).items():
            own.look_at(mine, name, problems)
            if theirs:
                theirs.look_at(wanted, name, problems)
    problems.raise_if_any()
    student_seen = own.probe(features, problems)
    teacher_seen = None
    if theirs and teacher_features is not None:
        teacher_seen = theirs.probe(teacher_features, problems)
    problems.raise_if_any()
    builder = _Builder(settings, task, rows, student_seen, teacher_seen, problems)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        built = [builder(name, part) for name, part in asked.items()]
    problems.raise_if_any()
    parts = tuple(part for part in built if part is not None)
    learning = {f"part{i}": one.part for i, one in enumerate(parts)}
    learned = nn.ModuleDict(
        {name: part for name, part in learning.items() if isinstance(part, nn.Module)}
    ).to(features.device)
    return Imitation(
        parts=parts,
        learned=learned,
        layers=own.modules,
        teacher=teacher,
        teacher_layers=theirs.modules if theirs else {},
        answer=answer,
        weighted=weighted,
        numbered="contrast" in asked,
        change=_change(settings, scaled, plain) if "consistency" in asked else None,
    )


def _change(settings: TrainingSettings, scaled: int, plain: int) -> Callable[[Tensor], Tensor]:
    """Return what changes features [B, F] at random: adds to numbers, leaves out codes and ids."""
    asked = settings.imitate.consistency

    def change(features: Tensor) -> Tensor:
        numbers, marks, codes = features.tensor_split((scaled, plain), dim=1)
        numbers = numbers + asked.noise * torch.randn_like(numbers)
        return torch.cat([numbers, marks, codes * (torch.rand_like(codes) >= asked.drop)], dim=1)

    return change


class _Builder:
    """Makes parts, and tries each on two rows."""

    def __init__(
        self,
        settings: TrainingSettings,
        task: str,
        rows: int,
        student: Seen,
        teacher: Seen | None,
        problems: Problems,
    ):
        self._settings, self._task, self._rows = settings, task, rows
        self._student, self._teacher, self._problems = student, teacher, problems

    def __call__(self, name: str, asked: Any) -> Weighed | None:
        """Return the part of a name; None where something is wrong, which is noted."""
        before = len(self._problems)
        with self._problems.collect():
            part = Weighed(
                name=name,
                weight=asked.weight,
                layers=getattr(asked, "layers", {}),
                part=self._make(name, asked),
            )
        if len(self._problems) > before:
            return None
        rows = len(self._student.outputs)
        outputs = self._student.outputs
        soft = outputs.softmax(1) if self._task == "multiclass" else outputs.sigmoid()
        told = soft, torch.zeros(rows, dtype=torch.int64, device=outputs.device)
        field = f"settings.imitate.{name}"
        own = part.part
        begun = deepcopy(own.state_dict()) if isinstance(own, nn.Module) else {}
        try:
            cost = part(self._student, self._teacher, told)
            if isinstance(own, nn.Module):  # it may remember what it is shown
                own.load_state_dict(begun)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            self._problems.add(field, asked.model_dump(), f"raised on two rows {said}; mend it")
            return None
        if not isinstance(cost, Tensor) or cost.shape != (rows,):  # pyright: ignore
            what = list(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__  # pyright: ignore
            remedy = f"gives {what} for {rows} rows; return the cost of each row, [{rows}]"
            self._problems.add(field, asked.model_dump(), remedy)
        return part

    def _make(self, name: str, asked: Any) -> Part:
        pairs = tuple(getattr(asked, "layers", {}).items())
        match name:
            case "features":
                return cast(Part, Features(pairs, self._widths(name, pairs, least=2)))
            case "attention":
                self._widths(name, pairs, least=3)
                return Attention(pairs)
            case "relations":
                self._check_angles(asked.angle)
                return Relations(pairs, distance=asked.distance, angle=asked.angle)
            case "dkd":
                if self._task != "multiclass":
                    remedy = "needs three classes or more to tell the others apart; leave it out"
                    raise InvalidInput([Problem("settings.imitate.dkd", self._task, remedy)])
                return DecoupledDistillation(
                    temperature=self._settings.temperature, alpha=asked.alpha, beta=asked.beta
                )
            case "contrast":
                return cast(Part, self._contrast(pairs, asked))
            case "consistency":
                return Consistency(self._task)
            case _:
                return self._own(name, asked.args)

    def _widths(
        self, name: str, pairs: Sequence[tuple[str, str]], *, least: int
    ) -> list[tuple[int, int]]:
        """Return the channels of each pair of layers, and refuse what cannot be compared."""
        problems, found = Problems(), list[tuple[int, int]]()
        field = f"settings.imitate.{name}.layers"
        if not pairs:
            problems.add(field, {}, 'name at least one pair, {"of the student": "of the teacher"}')
        assert self._teacher
        for own, theirs in pairs:
            mine, wanted = self._student.layers[own].shape, self._teacher.layers[theirs].shape
            shown = f"{list(mine[1:])} and {list(wanted[1:])}"
            if len(mine) != len(wanted):
                remedy = "have different numbers of dimensions; name layers of one kind"
                problems.add(f"{field}[{own!r}]", shown, remedy)
            elif len(mine) < least:
                remedy = "have no grid to look at; name layers that give [C, H, W], or [C, L]"
                problems.add(f"{field}[{own!r}]", shown, remedy)
            else:
                found.append((mine[1], wanted[1]))
        problems.raise_if_any()
        return found

    def _contrast(self, pairs: Sequence[tuple[str, str]], asked: ContrastSettings) -> Contrast:
        """Return the part, and refuse where rows have no place in its memory."""
        problems, settings = Problems(), self._settings
        field = "settings.imitate.contrast"
        if not pairs:
            remedy = 'name at least one pair, {"of the student": "of the teacher"}'
            problems.add(f"{field}.layers", {}, remedy)
        if settings.virtual_workers > 1 or Ranks.current().world > 1:
            remedy = "its memory of rows is one process's; use virtual_workers 1"
            problems.add(field, asked.weight, remedy)
        if settings.augment.mixup or settings.augment.cutmix:
            remedy = "a mixture of images is no row to remember; leave mixup and cutmix out"
            problems.add(field, asked.weight, remedy)
        if (scores := settings.batch_size * self._rows) > _MOST_SCORES:
            remedy = f"a batch has {scores:,} scores against {self._rows:,} rows; use at most "
            remedy += f"{max(1, _MOST_SCORES // self._rows)} rows a batch"
            problems.add(field, settings.batch_size, remedy)
        problems.raise_if_any()
        assert self._teacher
        widths = [
            (self._student.layers[own][0].numel(), self._teacher.layers[theirs][0].numel())
            for own, theirs in pairs
        ]
        return Contrast(
            pairs,
            widths,
            rows=self._rows,
            dim=asked.dim,
            negatives=asked.negatives,
            temperature=asked.temperature,
            momentum=asked.momentum,
        )

    def _check_angles(self, angle: float) -> None:
        rows = -(-self._settings.batch_size // self._settings.virtual_workers)
        if angle and rows > _MOST_ANGLES:
            remedy = (
                f"{rows:,} rows together have {rows**3:,} angles; use at most {_MOST_ANGLES} a "
                "batch, or a micro-batch of virtual_workers, or angle 0"
            )
            raise InvalidInput([Problem("settings.imitate.relations.angle", angle, remedy)])

    def _own(self, path: str, args: Mapping[str, Any]) -> Part:
        factory = import_factory(path, field="settings.imitate.own")
        field = f"settings.imitate.own[{path!r}]"
        arguments = fit_arguments(factory, args, {}, prefix=f"{field}.args.")
        try:
            part = factory(**arguments)
        except Exception as error:
            remedy = f"raised {type(error).__name__}: {error}"
            raise InvalidInput([Problem(field, arguments, remedy)]) from error
        if not callable(part):
            remedy = "makes what cannot be called with (student, teacher, targets)"
            raise InvalidInput([Problem(field, arguments, remedy)])
        if isinstance(part, nn.Module) and [*part.buffers()]:
            remedy = "has buffers, which are not shared between processes; do without them"
            raise InvalidInput([Problem(field, arguments, remedy)])
        return cast(Part, part)


class _Layers:
    """The layers of one network that are looked at."""

    def __init__(self, network: nn.Module, whose: str):
        self._network, self._whose, self._known = network, whose, module_names(network)
        self.modules: dict[str, nn.Module] = {}
        self._parts: dict[str, str] = {}
        """The part that looks at each of them first."""

    def look_at(self, name: str, part: str, problems: Problems) -> None:
        """Take a layer in, or note that there is none of its name."""
        if name in self._known:
            self.modules[name] = self._known[name]
            self._parts.setdefault(name, part)
        else:
            remedy = f"the {self._whose} has no such layer; {nearest(name, self._known)}"
            problems.add(f"settings.imitate.{part}.layers", name, remedy)

    def probe(self, rows: Tensor, problems: Problems) -> Seen:
        """Return what the layers give for a few rows; note what is no tensor with a row each."""
        network, training = self._network, self._network.training
        network.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), watch(self.modules) as seen:
                outputs = network(rows)
        finally:
            network.train(training)
        for name, part in self._parts.items():
            given, why = seen.get(name), ""
            if given is None:
                why = "does not run when the network answers; name another layer"
            elif not isinstance(given, Tensor):
                why = f"gives a {type(given).__name__}; name one that gives a tensor"
            elif given.dim() < 2 or len(given) != len(rows):
                why = (
                    f"gives {list(given.shape)} for {len(rows)} rows; name one that gives [B, ...]"
                )
            elif name in seen.again:
                why = "runs more than once for a batch; name one that runs once"
            elif name in seen.changed():
                why = "is overwritten by the layer behind it, which works in place; name that one"
            if why:
                field = f"settings.imitate.{part}.layers"
                problems.add(field, name, f"this layer of the {self._whose} {why}")
        found = _seen(outputs, {} if len(problems) else seen)
        numbers = torch.arange(len(rows), device=rows.device)
        return replace(found, rows=numbers, changed=found.outputs)


class Watched(dict[str, Any]):
    """What layers gave, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.again: set[str] = set()
        """Those that ran more than once."""
        self._versions: dict[str, int] = {}

    def keep(self, name: str, given: Any) -> None:
        """Take what a layer gives."""
        if name in self:
            self.again.add(name)
        self[name] = given
        if isinstance(given, Tensor) and not given.is_inference():
            self._versions[name] = given._version  # pyright: ignore[reportPrivateUsage]

    def changed(self) -> set[str]:
        """Return those that were overwritten since."""
        return {name for name, version in self._versions.items() if self[name]._version != version}


@contextmanager
def watch(layers: Mapping[str, nn.Module]) -> Generator[Watched]:
    """Keep what layers give while their network runs inside the block."""
    seen = Watched()

    def hook(name: str) -> Callable[..., None]:
        return lambda module, given, made: seen.keep(name, made)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _only(seen: Seen, names: Collection[str]) -> Seen:
    return replace(seen, layers={name: seen.layers[name] for name in names})


def _seen(outputs: Tensor, layers: Mapping[str, Tensor]) -> Seen:
    return Seen(
        outputs=outputs.float(), layers={name: given.float() for name, given in layers.items()}
    )
