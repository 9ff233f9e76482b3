"""The training loop: restore, step, score, save, stop, choose.

One engine serves every preset. Teacher, student and fine-tuning differ only in what they hand it:
the model, the rows and the loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Literal, NoReturn

import torch
from torch import Tensor

from kubestill.errors import Diverged, InvalidInput, Problem, Problems, StoreError
from kubestill.heartbeat import Pulse
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.ledger import Checkpoint, finite
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.restore import Wanted, load_state
from kubestill.runtime.checkpoints.state import TrainingState
from kubestill.runtime.curves.phases import boundary_candidates, detect_phases, phase_of
from kubestill.runtime.models.fake_quantise import wait
from kubestill.runtime.training import random_state
from kubestill.runtime.training.batches import Batches, Order, choose_window
from kubestill.runtime.training.device import Machine
from kubestill.runtime.training.distributed import average_, exchanges_within
from kubestill.runtime.training.finish import Finish
from kubestill.runtime.training.imitation import build_imitating_step
from kubestill.runtime.training.kernels import foreach_lerp_
from kubestill.runtime.training.micro_batches import MicroBatches
from kubestill.runtime.training.plan import Plan
from kubestill.runtime.training.prepare import Prepared
from kubestill.runtime.training.record import FORMAT, Chosen, Curves, Learned, Stop
from kubestill.runtime.training.saved import read_saved
from kubestill.runtime.training.schedules import CONSTANT, LearningRates
from kubestill.runtime.training.settings import FUSED, TrainingSettings
from kubestill.runtime.training.shards import ShardedStep, Shards
from kubestill.runtime.training.step_choice import build_step
from kubestill.runtime.training.steps import Step
from kubestill.runtime.training.stopping import Stopping, what_is_broken
from kubestill.runtime.training.tree import Groups

Say = Callable[[str], None]

_FIRST_ROWS = 8192
_SETTLED_RATE = 0.1
"""Share of its peak at which a learning rate no longer hides convergence."""
_MISSED_SECONDS = 15.0
"""How long after the others, which miss it, a process that hangs is ended from outside."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What fine-tuning keeps of the checkpoint it starts from, besides the model.

    Of the checkpoint itself each process reads what it needs, when it needs it.
    """

    checkpoint: Checkpoint | None = None
    """That checkpoint; None where nothing is read of it."""
    keeps_optimizer: bool = False
    """Whether the optimizer goes on from its state; otherwise it starts a fresh one."""
    touched: bool = False
    """Whether the model that training begins with has other weights than the checkpoint: shrunk or
    perturbed ones."""
    schedule_from: int = 0
    """Step at which the learning-rate schedule continues."""
    schedule_steps: int = 0
    """Length of that schedule, in steps; it lasts at least as long as fine-tuning does."""
    steps_per_epoch: int = 0
    """Of the training run that made the checkpoint; 0 takes this one's."""
    data_from: int = 0
    """Step at which the order of the data continues."""


class Trainer:
    """Trains one prepared model to its end, from wherever its checkpoints say it is.

    Args:
        prepared: Model, rows, loss and validation rows.
        settings: Validated settings.
        machine: Device and precision.
        checkpointer: Where state is saved and restored from.
        say: Takes progress lines.
        start: What fine-tuning keeps of its starting point besides the model.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: TrainingSettings,
        machine: Machine,
        checkpointer: Checkpointer,
        *,
        say: Say = print,
        start: Start | None = None,
    ):
        self.model = prepared.model
        self.step = 0
        self._pulse = Pulse.current
        self._ranks = Ranks.current()
        self._elastic = settings.virtual_workers > 1
        """Whether every process does the same, and the processes may be others at any restart."""
        self.curves: dict[str, list[dict[str, float]]] = {"train": [], "validation": []}
        self.stop: tuple[str, str] | None = None
        self.phases = detect_phases(self.curves)
        self._prepared, self._settings, self._machine = prepared, settings, machine
        self._checkpointer, self._say = checkpointer, say
        self._continues = start is not None
        self._start = start = start or Start()
        self._plan = Plan(
            rows=prepared.rows.count, settings=settings, least_rows=prepared.least_rows
        )
        self.total_steps = self._plan.steps
        self._rounds_from = 0
        """Step from which layers compute in 8 bits, where they do."""
        if settings.quantise_aware:
            self._rounds_from = round((1 - settings.quantise_aware) * self.total_steps)
        self._finish: Finish | None = None
        self._stopping = Stopping(
            metric=prepared.metric,
            patience=settings.patience,
            min_delta=settings.min_delta,
            tolerance=settings.tolerance,
            converged_after=settings.converged_after,
        )
        self._rate_offset, self._data_offset = start.schedule_from, start.data_from
        self._steps_per_epoch = start.steps_per_epoch or self._plan.steps_per_epoch
        self._schedule_steps = max(
            start.schedule_from + self._plan.finish_from, start.schedule_steps
        )
        self._rates = LearningRates(
            settings.schedule,
            settings.schedule_args,
            peak=settings.learning_rate,
            steps=self._schedule_steps,
            warmup=settings.warmup_steps,
            steps_per_tick=1 if settings.schedule_unit == "step" else self._steps_per_epoch,
        )
        self._shards: Shards | None = None
        """Who owns which parameter, where each process keeps a share."""
        self._costs = prepared.costs
        # The loss alone, or the loss and what it consists of.
        shape = (1 + len(self._costs),) if self._costs else ()
        self._loss_sum = torch.zeros(shape, device=machine.device)
        self._losses_since = 0
        self._seconds = 0.0
        self._last_line = 0.0

    def fit(self) -> Learned:
        """Train to the end of the budget or an early stop, and return what was learned on the way.

        Raises:
            Diverged: Loss or weights became NaN or infinite; what was saved before is kept.
            Fenced: A newer attempt took over.
            StoreError: The store was gone for longer than training may continue without it.
        """
        self._shards = self._share_out()
        saved = self._checkpointer.restore(self._shards and self._wanted())
        self._set_up(saved)
        self._clock = time.monotonic()
        # Where somebody else hangs, an exchange fails first, and says who it is.
        patience = self._settings.rank_timeout + (_MISSED_SECONDS if self._ranks.world > 1 else 0)
        self._pulse.begin(rank=self._ranks.rank, timeout=patience)
        # It is the first thing to be saved: where anything was, it is already scored.
        if saved is None and self._starts_as_candidate():
            self._score_start()
        elif self._skipped_its_milestone():
            self._milestone()
        while self.step < self.total_steps and self.stop is None:
            stop = self._plan.next_milestone(self.step)
            with exchanges_within(self._settings.rank_timeout):
                if self.step < self._plan.finish_from:
                    self._run_until(stop)
                else:
                    self._finish_until(stop)
            # As long as the rows take, and the store: only steps have a usual length.
            self._pulse.rest()
            self._milestone()
        self.stop = self.stop or ("budget", f"{self.step} of {self.total_steps} steps done")
        self._say(f"stopped: {self.stop[0]} ({self.stop[1]})")
        return self._learned()

    def _set_up(self, saved: TrainingState | None) -> None:
        """Build what the loop needs, fresh or as it was saved."""
        resolved = read_saved(saved.meta, "the checkpoint").resolved if saved else {}
        shuffle = resolved.get("shuffle", self._prepared.shuffle)
        self.step_path, self._train_step = self._build_step(resolved.get("step_path"))
        self._check_path(resolved.get("step_path"))
        own = 0 if self._elastic else self._ranks.rank
        random_state.seed_everything(self._settings.seed + own)
        self._average = deepcopy(self.model.network) if self._settings.ema_decay else None
        if saved:
            self._restore(saved)
        if self.step == 0 and self._start.keeps_optimizer:
            self._keep_optimizer()
        rows = self._prepared.rows
        # The order of `blocks` depends on the window, and a window on how the rows are kept.
        chosen = choose_window(rows, self._settings.batch_size)
        window_rows = int(resolved.get("window_rows", chosen))
        order = Order(
            rows=rows.count,
            batch_size=self._settings.batch_size,
            seed=self._settings.seed,
            shuffle=shuffle,
            window_rows=window_rows,
            least_rows=self._prepared.least_rows,
            rank=self._ranks.rank,
            world_size=self._ranks.world,
            virtual_workers=self._settings.virtual_workers,
            in_turn=self._shards is not None,
        )
        self._resolved = {
            "shuffle": shuffle,
            "step_path": self.step_path,
            "window_rows": window_rows,
        }
        batches = Batches(rows, order, self._prepared.change)
        self._batches = batches.starting_at(self._data_offset + self.step)
        self.model.network.train()
        wait(self.model.network, self.step < self._rounds_from)
        position = f", from step {self.step:,}" if self.step else ""
        if drawn := self._settings.augment.describe():
            position = f", each row augmented ({drawn}){position}"
        if share := self._settings.quantise_aware:
            position = f", in 8 bits for the last {share:.0%} of them{position}"
        self._say(
            f"training {self.model.spec.parameters:,} parameters on {rows.count:,} rows for "
            f"{self.total_steps:,} steps of {self._settings.batch_size}: "
            f"{self._machine.describe()}, {self.step_path} step{position}"
        )

    def _share_out(self) -> Shards | None:
        """Let go of what other processes keep, where the settings say so and there are any.

        Raises:
            InvalidInput: Something needs all of the state in one process.
        """
        settings, ranks = self._settings, self._ranks
        if not settings.shard or ranks.world == 1:
            return None
        problems = Problems()
        if self._prepared.imitation is not None:
            remedy = "a teacher that stands beside the student is not shared out; leave it out"
            problems.add("settings.shard", settings.shard, remedy)
        kinds = {parameter.dtype for parameter in self.model.network.parameters()}
        if settings.gradient_clip and len(kinds) > 1:
            remedy = "parameters of several types have no order in which norms add up; use 0"
            problems.add("gradient_clip", settings.gradient_clip, remedy)
        listed = {id(tensor) for tensor in self.model.state_dict(keep_vars=True).values()}
        if any(id(parameter) not in listed for parameter in self.model.network.parameters()):
            remedy = "the network saves something else than its parameters; leave shard out"
            problems.add("settings.shard", settings.shard, remedy)
        problems.raise_if_any()
        world, timeout = ranks.world, settings.rank_timeout
        shards = Shards(
            self.model.network, settings.shard, rank=ranks.rank, world=world, timeout=timeout
        )
        self._say(shards.describe())
        return shards

    def _wanted(self) -> Wanted:
        """Return what this process needs of a state."""
        assert self._shards
        held = self._weights()
        trained = {self._shards.names[i] for i in self._shards.owned}

        def takes(name: str) -> bool:
            kind, _, own = name.partition("/")
            if kind == "model":
                return own in held
            return kind != "optimizer" or own.rpartition("/")[0] in trained

        return Wanted(names=frozenset(f"model/{name}" for name in held), takes=takes)

    def _weights(self) -> dict[str, Tensor]:
        """Return the live weights that this process keeps, by their names in the model."""
        absent = self._shards.absent if self._shards else set[int]()
        every = self.model.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in every.items() if id(tensor) not in absent}

    def _give_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model weights, of which it takes those that this process keeps."""
        if self._shards is None:
            self.model.load_state_dict(weights)
            return
        for name, tensor in self._weights().items():
            tensor.copy_(weights[name])

    def _check_path(self, before: str | None) -> None:
        """Refuse settings that take another step than the training run began with.

        Raises:
            InvalidInput: They round in another way.
        """
        for name in ("shard", "recompute"):
            asked = getattr(self._settings, name)
            if asked and before in FUSED and self.step_path != before:
                remedy = f"this training run began with the {before} step, which rounds otherwise; "
                remedy += "leave it out, or begin anew with resume 'never'"
                raise InvalidInput([Problem(f"settings.{name}", asked, remedy)])

    def _build_step(self, path: str | None) -> tuple[str, Step]:
        """Return what `build_step` does, on micro-batches where the settings ask for them."""
        network, settings, ranks = self.model.network, self._settings, self._ranks
        if self._shards is not None:
            loss, machine = self._prepared.loss, self._machine
            return "autograd", ShardedStep(network, loss, settings, machine, self._shards)
        parts = (network, self._prepared.loss, settings, self._machine)
        imitation = self._prepared.imitation
        build = (
            partial(build_imitating_step, imitation)
            if imitation
            else partial(build_step, say=self._say)
        )
        if not self._elastic:
            return build(*parts, path=path, world_size=ranks.world)
        name, step = build(*parts, path=path)
        leaves, groups = settings.virtual_workers, None
        if ranks.world > 1:
            timeout = settings.rank_timeout
            groups = Groups(leaves, rank=ranks.rank, world=ranks.world, timeout=timeout)
        seed = settings.seed
        return name, MicroBatches(step, network, leaves=leaves, seed=seed, groups=groups)

    def _starts_as_candidate(self) -> bool:
        """Return whether the starting point of fine-tuning is scored, too.

        It may be better than all that comes of it, and is exported then.
        """
        followed = self._continues and self._prepared.validation is not None
        return followed and self._settings.choose == "best"

    @torch.no_grad()
    def _score_start(self) -> None:
        """Make the starting point a milestone; its training loss is that of the first rows.

        Where training begins with other weights, the milestone holds those of the checkpoint, and
        is not part of the curves, which would leap.
        """
        if not self._start.touched:
            self._add_loss_of_first_rows()
            self._milestone()
            return
        begun = {name: tensor.clone() for name, tensor in self._weights().items()}
        # Where there is an average, it is what was scored and chosen.
        self._load_weights(self._read_start("model/", "ema/"))
        self._add_loss_of_first_rows()
        metrics = self._score()
        self._stopping.start = finite(metrics).get(self._prepared.metric)
        self._save("milestone", metrics)
        self._progress(metrics)
        self._load_weights(begun)

    def _read_start(self, *prefixes: str) -> dict[str, Tensor]:
        """Read of the starting point what this process needs below prefixes; the last one counts.

        The prefixes are not part of the names that it returns.
        """
        assert self._start.checkpoint
        takes = self._wanted().takes if self._shards else lambda name: True

        def needed(name: str) -> bool:
            # A process has the average of what it has the weights of.
            return name.startswith(prefixes) and takes(name.replace("ema/", "model/", 1))

        found = load_state(self._start.checkpoint, needed)
        return {
            name: tensor for prefix in prefixes for name, tensor in below(prefix, found).items()
        }

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model weights, and its average the same."""
        self._give_weights(weights)
        if self._average is not None:
            self._average.load_state_dict(self.model.network.state_dict())

    def _add_loss_of_first_rows(self) -> None:
        network, rows = self.model.network.eval(), self._prepared.rows
        features, *targets = rows.between(0, min(rows.count, _FIRST_ROWS))
        device = self._machine.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            loss, _ = self._prepared.loss(network(features).float(), tuple(targets))
        network.train()
        self._loss_sum += loss
        self._losses_since = 1

    def _skipped_its_milestone(self) -> bool:
        """Return whether the state was saved at a milestone's step, before that was scored.

        Earlier versions saved such states, and resuming from one must not cost the milestone.
        """
        scored = self.curves["train"][-1]["step"] if self.curves["train"] else 0
        return scored < self.step == self._plan.next_milestone(self.step - 1)

    def _run_until(self, stop: int) -> None:
        """Take first-order steps. This is the hot loop: nothing in it waits for the device."""
        step, rates, offset = self._train_step, self._rates, self._rate_offset
        loss_sum = self._loss_sum
        recovery_due, average = self._checkpointer.recovery_due, self._average
        rounds_from = self._rounds_from
        beat = self._pulse.beat
        beat(self.step)
        while self.step < stop:
            if self.step == rounds_from:
                wait(self.model.network, False)
            part, batch = next(self._batches)
            loss_sum += step(batch, rates.at(offset + self.step), part)
            self.step += 1
            self._losses_since += 1
            beat(self.step)
            if average is not None:
                self._update_average(average)
            # A milestone is part of its step: resuming from a state between the two would skip it.
            if recovery_due() and self.step < stop:
                self._save("recovery")
            if time.monotonic() - self._last_line >= self._settings.log_seconds:
                self._progress()

    def _finish_until(self, stop: int) -> None:
        """Take second-order steps, each of which sees every row at least ten times."""
        finish = self._finish or self._start_finish()
        while self.step < stop:
            self._loss_sum += finish()
            self.step += 1
            self._losses_since += 1
            if self._checkpointer.recovery_due() and self.step < stop:
                self._save("recovery")
            if time.monotonic() - self._last_line >= self._settings.log_seconds:
                self._progress()

    def _start_finish(self) -> Finish:
        self._finish = Finish(
            self.model.network,
            self._prepared.loss,
            self._prepared.rows,
            history=self._settings.finish_history,
        )
        return self._finish

    def _milestone(self) -> None:
        """Score the model, save it, and decide whether to stop early."""
        position = {"step": self.step, "epoch": self.epoch, "examples": self.examples}
        costs = self._mean_costs()
        metrics = self._score()
        self.curves["train"].append({**position, "loss": metrics["train_loss"], **costs})
        if self._prepared.validation:
            scores = {name: value for name, value in metrics.items() if name != "train_loss"}
            sound = finite(scores)
            if sound:
                self.curves["validation"].append({**position, **sound})
            if lost := ", ".join(name for name in scores if name not in sound):
                where = self._prepared.validation.where
                self._say(f"WARNING: not a number {where} at step {self.step:,}: {lost}")
        value = metrics[self._prepared.metric]
        self.stop = self._stopping.update(self.step, value, settled=self._settled())
        self._mark_phases()
        self._save("milestone", metrics)
        self._progress(metrics)

    def _score(self) -> dict[str, float]:
        """Return the mean loss since the last milestone, and the metrics on what is followed."""
        metrics = {"train_loss": self._mean_loss()}
        if self._prepared.validation:
            network = self._average if self._average is not None else self.model.network
            metrics |= self._prepared.validation(network)
        self._loss_sum.zero_()
        self._losses_since = 0
        return metrics

    def _mark_phases(self) -> None:
        """Note in the ledger what the curves show so far: pruning spares the ends of phases."""
        scored = self._prepared.validation
        metric, followed = self._prepared.metric, scored.followed if scored else "validation"
        self.phases = detect_phases(self.curves, metric=metric, followed=followed)
        steps = [int(point["step"]) for point in self.curves["train"]]
        expected = math.ceil(len(steps) * self.total_steps / max(1, self.step))
        self._checkpointer.mark_phases(
            {step: phase_of(self.phases, step) for step in steps},
            boundary_candidates(self.curves, metric=metric, followed=followed, most=expected),
        )

    def _settled(self) -> bool:
        """Return whether an error that hardly changes has converged, and is not only held back."""
        if self._settings.finish_steps:
            return self.step > self._plan.finish_from
        if self._settings.schedule == CONSTANT:
            return True
        rate = self._rates.at(self._rate_offset + self.step)
        return rate <= _SETTLED_RATE * self._settings.learning_rate

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self._plan.epochs(self.step)

    @property
    def examples(self) -> int:
        """Rows trained on so far."""
        return self._plan.examples(self.step)

    def _mean_loss(self) -> float:
        """Return the mean loss since the last milestone.

        Raises:
            Diverged: The loss or a weight is not finite.
        """
        loss = self._mean_losses()[0]
        absent = self._shards.absent if self._shards else ()
        broken = what_is_broken(loss, self.model.network, absent)
        if self._shards is not None:
            broken = next(filter(None, self._ranks.gather(broken)), "")
        if broken:
            self._diverge(broken)
        return loss

    def _mean_costs(self) -> dict[str, float]:
        """Return what the loss consists of, by name, as means since the last milestone."""
        costs = zip(self._costs, self._mean_losses()[1:], strict=True) if self._costs else ()
        return {name: cost for name, cost in costs if math.isfinite(cost)}

    def _mean_losses(self) -> list[float]:
        total = self._loss_sum
        if not self._elastic:
            total = average_(total.clone(), self._ranks.world)
        return [value / max(1, self._losses_since) for value in total.reshape(-1).tolist()]

    def _diverge(self, what: str) -> NoReturn:
        with suppress(StoreError):
            self._checkpointer.flush()
        saved = self._checkpointer.ledger.entries
        kept = f"The state of step {saved[-1].step:,} is kept" if saved else "Nothing was saved yet"
        reason = (
            f"{what} before step {self.step}; lower learning_rate (now "
            f"{self._settings.learning_rate:g}), set gradient_clip, or look for extreme values "
            f"in the data. {kept}"
        )
        self._checkpointer.fail(reason)
        raise Diverged(reason)

    def _save(
        self, kind: Literal["milestone", "recovery"], metrics: dict[str, float] | None = None
    ):
        if kind == "recovery":
            self._mean_loss()
        now = time.monotonic()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        steps = self._pulse.steps
        self._pulse.rest()
        self._checkpointer.save(
            self._state(),
            kind=kind,
            step=self.step,
            epoch=self.epoch,
            examples=self.examples,
            metrics=metrics,
        )
        if steps is not None:
            self._pulse.beat(steps)

    def _state(self) -> TrainingState:
        """Return a view of everything that resuming needs; the tensors are live."""
        tensors: dict[str, Tensor] = {
            **{f"model/{name}": tensor for name, tensor in self._weights().items()},
            **{f"optimizer/{name}": tensor for name, tensor in self._train_step.state().items()},
        }
        if self._shards is not None and self._ranks.rank:
            # What all have is in the file of rank 0.
            own = {id(parameter) for parameter in self._shards.parameters} - self._shards.absent
            every = self.model.state_dict(keep_vars=True)
            kept = {f"model/{name}" for name, tensor in every.items() if id(tensor) in own}
            tensors = {k: t for k, t in tensors.items() if k in kept or not k.startswith("model/")}
        elif self._elastic:
            tensors["loss_sum"] = self._loss_sum
        else:
            generators = random_state.capture()
            tensors |= {f"rank/rng/{name}": tensor for name, tensor in generators.items()}
            tensors["rank/loss_sum"] = self._loss_sum
        if self._finish is not None:
            tensors |= {f"finish/{name}": t for name, t in self._finish.state().items()}
        if self._prepared.imitation is not None:
            learned = self._prepared.imitation.learned.state_dict()
            tensors |= {f"imitation/{name}": tensor for name, tensor in learned.items()}
        if self._average is not None:
            average = self._average.state_dict()
            tensors |= {f"ema/network.{name}": tensor for name, tensor in average.items()}
        meta = {
            "step": self.step,
            "losses_since": self._losses_since,
            "seconds": self._seconds,
            "curves": self.curves,
            "stopping": self._stopping.to_json(),
            "stop": self.stop,
            "kept": {
                "schedule_from": self._rate_offset + self.step,
                "schedule_steps": self._schedule_steps,
                "steps_per_epoch": self._steps_per_epoch,
                "data_from": self._data_offset + self.step,
            },
            "resolved": self._resolved,
            "model_spec": self.model.spec.to_json(),
            "settings": self._settings.model_dump(mode="json"),
        }
        return TrainingState(tensors=tensors, meta=meta)

    def _restore(self, saved: TrainingState) -> None:
        """Continue as if nothing had happened.

        A state of another number of ranks brings what they shared; random generators start anew.
        """
        # A starting point has no optimizer yet: torch's make theirs at the first step. Its weights
        # may not be those that training begins with, which the model has already.
        if saved.meta["step"]:
            self._train_step.load_state(below("optimizer/", saved))
            self._give_weights(below("model/", saved))
            if self._prepared.imitation is not None:
                self._prepared.imitation.learned.load_state_dict(below("imitation/", saved))
            if self._average is not None:
                self._average.load_state_dict(below("ema/network.", saved))
        if finish := below("finish/", saved):
            self._start_finish().load_state(finish)
        own = "loss_sum" if self._elastic else "rank/loss_sum"
        if own in saved.tensors:
            if not self._elastic:
                random_state.restore(below("rank/rng/", saved))
            self._loss_sum.copy_(saved.tensors[own])
            self._losses_since = int(saved.meta["losses_since"])
        meta = saved.meta
        self.step = int(meta["step"])
        self._seconds, self.curves = float(meta["seconds"]), meta["curves"]
        self._stopping = Stopping(**meta["stopping"])
        self.stop = tuple(meta["stop"]) if meta["stop"] else None
        if self.curves["train"]:
            self._mark_phases()

    def _keep_optimizer(self) -> None:
        """Take over the optimizer of the starting point; loading it may touch the weights."""
        if not (state := self._read_start("optimizer/")):
            return
        weights = {name: tensor.clone() for name, tensor in self._weights().items()}
        self._train_step.load_state(state)
        self._give_weights(weights)

    @torch.no_grad()
    def _update_average(self, average: torch.nn.Module) -> None:
        """Move the average towards the weights (Polyak & Juditsky 1992, exponential form)."""
        live = self.model.network
        # It must forget the initial weights, in short training runs too.
        decay = min(self._settings.ema_decay, (1 + self.step) / (10 + self.step))
        foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)
        for kept, buffer in zip(average.buffers(), live.buffers(), strict=True):
            kept.copy_(buffer)

    def _progress(self, metrics: dict[str, float] | None = None) -> None:
        now = time.monotonic()
        self._last_line = now
        if metrics is None:
            total = float(self._loss_sum.reshape(-1)[0])
            metrics = {"train_loss": total / max(1, self._losses_since)}
        scores = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        spent = self._seconds + now - self._clock
        position = f"epoch {self.epoch:7.2f}  step {self.step:>7,}/{self.total_steps:,}"
        self._say(f"{position}  {scores}  {spent:.0f} s")

    def _learned(self) -> Learned:
        self._seconds += time.monotonic() - self._clock
        assert self.stop is not None
        reason, detail = self.stop
        return Learned(
            format=FORMAT,
            settings=self._settings.model_dump(mode="json"),
            loss=self._prepared.loss_name,
            metric=self._prepared.metric,
            device=self._machine.describe(),
            step_path=self.step_path,
            steps=self.step,
            epochs=self.epoch,
            examples=self.examples,
            rows=self._prepared.rows.count,
            seconds=self._seconds,
            stop=Stop.model_validate({"reason": reason, "detail": detail}),
            chosen=self._choose(),
            curves=Curves.model_validate(self.curves),
            phases=self.phases,
        )

    def _choose(self) -> Chosen:
        """Return the milestone to export: the best by the metric, or the last."""
        if self._settings.choose == "last" or not self._prepared.validation:
            return Chosen(step=self.step, why="the last milestone")
        best, metric = self._stopping.best, self._prepared.metric
        where = self._prepared.validation.where
        if best is None:
            why = f"the last milestone: {metric} {where} was never a number"
            return Chosen(step=self.step, why=why)
        step, value = best
        if self._continues and step == 0:
            why = f"the starting point: no milestone bettered its {metric} {where}, {value:.6g}"
            self._say(f"WARNING: fine-tuning did not help: the export is {why}")
            return Chosen(step=0, why=why)
        return Chosen(step=step, why=f"best {metric} {where}: {value:.6g}")


def below(prefix: str, state: TrainingState) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.tensors.items()
        if name.startswith(prefix)
    }
