"""Why a batch is not learned: told by experiment, each changing one thing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kubestill.runtime.models.embed import Embed
from kubestill.runtime.models.networks import mlp
from kubestill.runtime.sanity.batch import Batch, make_batch
from kubestill.runtime.sanity.findings import LEARNED, Check, GateFindings, Trace
from kubestill.runtime.sanity.floor import Floor, find_floor
from kubestill.runtime.sanity.memorise import Setup, memorise
from kubestill.runtime.sanity.network import ENORMOUS
from kubestill.runtime.training.prepare import Prepared

RATES = (1e-3, 1e-2, 1e-4, 0.1)
"""Tried one after the other; those within a factor of 3 of the one to train with are left out."""
NEARLY = 5.0
"""Times the excess asked for that a batch may end at and count as learned, slowly: what keeps a
network from learning leaves far more, and which side of the line a sound one ends on is chance."""
HALFWAY = 0.5
"""Excess below which a network is small, smooth or slow, and not broken."""
SLOW = 0.75
"""The same where a higher learning rate learns the batch, so that nothing else is in the way."""
OFF_SCALE = 10.0
"""Standardised values beyond which it is worth a try to normalise the batch by itself."""


def find_cause(
    findings: GateFindings, prepared: Prepared, batch: Batch, floor: Floor, setup: Setup
) -> Check:
    """Change one thing at a time until the batch is learned: that was it.

    Where a plain network does not learn it either, the rows are closer than networks tell apart,
    and fewer of them, far apart, are learned in their place.

    Appends the trace of every experiment to the findings, and names the one that the verdict rests
    on where that is a good one.
    """
    real = findings.traces[0]
    if not real.excess or abs(real.excess[0]) > ENORMOUS:
        return _failed(
            "exploding",
            f"Before any training the loss is {real.excess[0]:.3g} times a constant answer's.",
            "Look at the initial weights, and add normalisation layers.",
        )
    search = _Search(findings, prepared, batch, floor, setup)
    try:
        if real.ended == "time":
            raise _OutOfTime
        return (
            search.nearly(real)
            or search.settled_in_training(real)
            or search.partly(real)
            or search.find(real)
        )
    except _OutOfTime:
        told = f"After {real.steps[-1]} of {setup.steps} steps the time was over"
        if real.ended != "time":
            told = f"The time was over before it showed why {real.steps[-1]} steps are too few"
        return _failed(
            "budget",
            f"{told}, at {_percent(real)} excess.",
            "Raise gate.seconds, or give the gate a smaller gate.rows.",
            status="undetermined",
        )


class _OutOfTime(Exception):
    """No time is left for what an experiment would tell."""


class _Search:
    def __init__(
        self,
        findings: GateFindings,
        prepared: Prepared,
        batch: Batch,
        floor: Floor,
        setup: Setup,
    ):
        self._findings, self._batch, self._floor = findings, batch, floor
        self._setup, self._network = setup, prepared.model.network
        self._outputs = (
            1 if prepared.model.spec.task == "binary" else len(prepared.model.spec.outputs)
        )
        self._vocabulary = prepared.model.encoder.vocabulary

    def nearly(self, real: Trace) -> Check | None:
        if not self._near(real):
            return None
        return self._learned(
            real, f"Slowly: to {_percent(real)} above its floor in {real.steps[-1]:,} steps."
        )

    def find(self, real: Trace) -> Check:
        if not self._plain_learns("a plain MLP"):
            if wrong := self.normalised():
                return wrong
            fewer = self.fewer_rows()
            if fewer is None:
                if real.ended == "diverged":
                    return _failed("exploding", "The loss becomes infinite at every rate tried.")
                return _failed(
                    "stuck",
                    f"{_percent(real)} excess is left, and a plain MLP of 256-256 learns neither "
                    "these rows nor a few of them.",
                    "Look at the labels and at the scale of the features.",
                )
            told = (
                f"{self._findings.rows} rows are closer than networks tell apart (a plain MLP does "
                f"not learn them either). {fewer.rows} of them, far apart, are learned to "
                f"{_percent(fewer)} above their floor in {fewer.steps[-1]:,} steps."
            )
            if self._near(fewer):
                return self._learned(fewer, told)
            real = fewer
        return self.partly(real) or self.other_rates(real) or self.normalised() or self.broken(real)

    def fewer_rows(self) -> Trace | None:
        """Go on with as many rows as a plain network learns; None where it learns not even a few.

        Returns:
            How the network itself learns them.
        """
        whole = self._batch
        for rows in (whole.rows // 4, whole.rows // 8):
            if rows < 2:
                break
            self._batch = whole.spread(rows)
            self._floor = find_floor(self._setup.loss, self._batch, self._outputs)
            if self._floor.gap > 0 and self._plain_learns(f"a plain MLP, {rows} rows"):
                return self._try(f"{rows} rows", steps=self._setup.steps)
        return None

    def settled_in_training(self, real: Trace) -> Check | None:
        excess = self._floor.excess(real.final_train_loss)
        if real.ended == "diverged" or excess > 2 * self._setup.near:
            return None
        if real.excess[-1] <= 2 * excess:  # not far apart: it is slow, not of two minds
            return None
        return _failed(
            "train-eval",
            f"While training the batch is learned ({100 * excess:.2g}% excess), but in evaluation "
            f"mode it is not ({100 * real.excess[-1]:.3g}%).",
            "Look at running statistics (batch norm's momentum) and at what forward does in "
            "training mode only.",
        )

    def partly(self, real: Trace) -> Check | None:
        """Accept a good part of the way: a small network, or one made for smooth functions."""
        if real.ended == "diverged" or real.excess[-1] > HALFWAY:
            return None
        return self._learned(
            real,
            f"In part: to {_percent(real)} above its floor in {real.steps[-1]:,} steps, as noisy "
            f"rows and a network that is smooth, small ({self._parameters:,} parameters for "
            f"{self._wanted:,} labels) or slow leave it.",
        )

    def other_rates(self, real: Trace) -> Check | None:
        own = self._setup.settings.learning_rate
        for rate in RATES:
            if 1 / 3 < rate / own < 3:
                continue
            trace = self._try(f"learning rate {rate:g}", learning_rate=rate)
            if trace.reached is not None and rate > own and real.excess[-1] <= SLOW:
                return self._learned(
                    real,
                    f"In part: to {_percent(real)} above its floor in {real.steps[-1]:,} steps at "
                    f"a learning rate of {own:g}; at {rate:g} the batch is learned in "
                    f"{trace.reached}. Use a higher rate, or train for longer.",
                )
            if trace.reached is not None:
                how = (
                    "diverges" if real.ended == "diverged" else f"stays at {_percent(real)} excess"
                )
                return _failed(
                    "learning-rate",
                    f"At a learning rate of {own:g} the loss {how}; at {rate:g} the batch is "
                    f"learned in {trace.reached} steps.",
                    f"Use about {rate:g}.",
                )
        return None

    def normalised(self) -> Check | None:
        """Standardise the batch's features, then its targets, where they are off their scale."""
        features = self._batch.features
        codes = len(self._vocabulary)
        plain, coded = features.tensor_split([features.shape[1] - codes], dim=1)
        if plain.shape[1] and float(plain.abs().max()) > OFF_SCALE:
            normalised = torch.cat([_standardised(plain), coded], dim=1)
            scaled = make_batch(normalised, self._batch.targets)
            if self._try("features normalised", batch=scaled).reached is not None:
                return _failed(
                    "features-scale",
                    "With its features normalised the batch is learned; as they are it is not.",
                    "Look at columns with extreme values, or take their logarithm.",
                )
        target = self._batch.targets[0]
        values = target.is_floating_point() and len(self._batch.targets) == 1
        if values and float(target.abs().max()) > OFF_SCALE and float(target.min()) < 0:
            scaled = make_batch(features, (_standardised(target),))
            floor = find_floor(self._setup.loss, scaled, self._outputs)
            if self._try("targets standardised", batch=scaled, floor=floor).reached is not None:
                return _failed(
                    "target-scale",
                    "With its targets standardised the batch is learned; as they are it is not.",
                    "Look for extreme targets, or learn a logarithm.",
                )
        return None

    def broken(self, real: Trace) -> Check:
        """Tell a network that is too small from one that does not learn what a plain one does."""
        few = self._batch.spread(max(2, self._batch.rows // 8))
        floor = find_floor(self._setup.loss, few, self._outputs)
        trace = self._try(f"{few.rows} rows", batch=few, floor=floor) if floor.gap > 0 else None
        learned = trace is not None and trace.reached is not None
        if learned or self._parameters < self._wanted:
            return _failed(
                "too-small",
                f"{self._parameters:,} parameters for {self._wanted:,} outputs leave "
                f"{_percent(real)} excess"
                + (f"; they do learn {few.rows} rows." if learned else "."),
                "Give the network more units; where it is meant to be as small as this, lower "
                f"gate.rows (now {self._findings.rows}).",
            )
        if real.ended == "diverged":
            return _failed("exploding", "The loss becomes infinite at every rate tried.")
        return _failed(
            "network",
            f"{_percent(real)} excess is left, {few.rows} rows alone are not learned either, and a "
            "plain MLP learns them all.",
            "Look at what the network does to its input.",
        )

    @property
    def _parameters(self) -> int:
        return sum(p.numel() for p in self._network.parameters() if p.requires_grad)

    @property
    def _wanted(self) -> int:
        return self._batch.rows * self._outputs

    def _near(self, trace: Trace) -> bool:
        return trace.excess[-1] <= NEARLY * self._setup.near

    def _plain_learns(self, name: str) -> bool:
        plain = self._plain_mlp().to(self._batch.features.device)
        return self._try(name, network=plain, learning_rate=1e-3).reached is not None

    def _learned(self, trace: Trace, said: str) -> Check:
        self._findings.learned = trace
        return Check(name=LEARNED, status="note", said=said)

    def _plain_mlp(self) -> nn.Module:
        """Build what surely learns; it reads large categories as any network here does."""
        width = self._batch.features.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if not self._vocabulary:
                return mlp(width, self._outputs, (256, 256))
            embed = Embed(width, self._vocabulary)
            return nn.Sequential(embed, mlp(embed.out_features, self._outputs, (256, 256)))

    def _try(
        self,
        name: str,
        *,
        batch: Batch | None = None,
        floor: Floor | None = None,
        network: nn.Module | None = None,
        learning_rate: float = 0.0,
        steps: int = 0,
    ) -> Trace:
        setup = self._setup
        if learning_rate:
            told = setup.settings.model_copy(update={"learning_rate": learning_rate})
            setup = replace(setup, settings=told)
        setup = replace(setup, steps=steps or max(500, setup.steps // 2))
        trace = memorise(
            name, network or self._network, batch or self._batch, floor or self._floor, setup
        )
        self._findings.traces.append(trace)
        if trace.ended == "time":
            raise _OutOfTime
        return trace


def _standardised(values: Tensor) -> Tensor:
    spread = values.std(0)
    return (values - values.mean(0)) / torch.where(spread > 0, spread, 1.0)


def _percent(trace: Trace) -> str:
    return f"{100 * min(trace.best, 1e6):.3g}%"


def _failed(code: str, said: str, remedy: str = "", *, status: str = "fail") -> Check:
    return Check(
        name=LEARNED,
        status="undetermined" if status == "undetermined" else "fail",
        code=code,
        said=said,
        remedy=remedy,
    )
