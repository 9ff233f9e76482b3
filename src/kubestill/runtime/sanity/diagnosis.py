"""Why a batch is not learned: told by experiment, each changing one thing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kubestill.runtime.models.embed import Embed
from kubestill.runtime.models.networks import mlp
from kubestill.runtime.sanity.batch import Batch, make_batch
from kubestill.runtime.sanity.findings import LEARNED, Check, Findings, Trace
from kubestill.runtime.sanity.floor import Floor, find_floor
from kubestill.runtime.sanity.memorise import Attempt, memorise
from kubestill.runtime.sanity.network import ENORMOUS
from kubestill.runtime.training.prepare import Prepared

__all__ = ["find_cause"]

RATES = (1e-3, 1e-2, 1e-4, 0.1)
"""Tried one after the other; those within a factor of 3 of the one to train with are left out."""
ON_ITS_WAY = 0.25
"""Excess below which more steps may be all it takes."""


def find_cause(
    findings: Findings, prepared: Prepared, batch: Batch, floor: Floor, attempt: Attempt
) -> Check:
    """Change one thing at a time until the batch is learned: that was it.

    Appends the trace of every experiment to the findings.
    """
    search = _Search(findings, prepared, batch, floor, attempt)
    real = findings.traces[0]
    if real.ended == "time":
        return _failed(
            "budget",
            f"After {real.steps[-1]} of {attempt.steps} steps the time was over, at "
            f"{100 * real.best:.3g}% excess.",
            "Raise gate.seconds, or give the gate a smaller gate.rows.",
            status="undetermined",
        )
    if not real.excess or abs(real.excess[0]) > ENORMOUS:
        return _failed(
            "exploding",
            f"Before any training the loss is {real.excess[0]:.3g} times a constant answer's.",
            "Look at the initial weights, and add normalisation layers.",
        )
    return (
        search.settled_in_training(real)
        or search.more_steps(real)
        or search.other_rates(real)
        or search.normalised()
        or search.plain_network(real)
    )


class _Search:
    def __init__(
        self,
        findings: Findings,
        prepared: Prepared,
        batch: Batch,
        floor: Floor,
        attempt: Attempt,
    ):
        self._findings, self._batch, self._floor = findings, batch, floor
        self._attempt, self._network = attempt, prepared.model.network
        self._outputs = (
            1 if prepared.model.spec.task == "binary" else len(prepared.model.spec.outputs)
        )
        self._vocabulary = prepared.model.encoder.vocabulary

    def settled_in_training(self, real: Trace) -> Check | None:
        excess = self._floor.excess(real.final_train_loss)
        if real.ended == "diverged" or excess > 2 * self._attempt.near:
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

    def more_steps(self, real: Trace) -> Check | None:
        """Give a loss that is well on its way four times the steps: slow is not broken."""
        if real.best > ON_ITS_WAY:
            return None
        trace = self._try("four times the steps", steps=4 * self._attempt.steps)
        if trace.reached is None:
            return None
        return Check(
            name=LEARNED,
            status="note",
            said=f"Slowly: to {_percent(trace)} above its floor in {trace.reached:,} steps.",
        )

    def other_rates(self, real: Trace) -> Check | None:
        own = self._attempt.settings.learning_rate
        for rate in RATES:
            if 1 / 3 < rate / own < 3:
                continue
            trace = self._try(f"learning rate {rate:g}", learning_rate=rate)
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
        """Standardise the batch's own features, then its targets."""
        features = self._batch.features
        codes = len(self._vocabulary)
        plain, coded = features.tensor_split([features.shape[1] - codes], dim=1)
        if plain.shape[1]:
            normalised = torch.cat([_standardised(plain), coded], dim=1)
            scaled = make_batch(normalised, self._batch.targets)
            if self._try("features normalised", batch=scaled).reached is not None:
                return _failed(
                    "features-scale",
                    "With its features normalised the batch is learned; as they are it is not.",
                    "Look at columns with extreme values, or take their logarithm.",
                )
        target = self._batch.targets[0]
        if target.is_floating_point() and len(self._batch.targets) == 1 and target.min() < 0:
            scaled = make_batch(features, (_standardised(target),))
            floor = find_floor(self._attempt.loss, scaled, self._outputs)
            if self._try("targets standardised", batch=scaled, floor=floor).reached is not None:
                return _failed(
                    "target-scale",
                    "With its targets standardised the batch is learned; as they are it is not.",
                    "Look for extreme targets, or learn a logarithm.",
                )
        return None

    def plain_network(self, real: Trace) -> Check:
        """Put a plain network in place of the user's; then give the user's fewer rows."""
        plain = self._plain_mlp().to(self._batch.features.device)
        if self._try("a plain MLP", network=plain, learning_rate=1e-3).reached is None:
            if real.ended == "diverged":
                return _failed("exploding", "The loss becomes infinite at every rate tried.", "")
            return _failed(
                "stuck",
                f"{_percent(real)} excess is left, and a plain MLP of 256-256 does not learn "
                "these rows either.",
                "Look at the labels and at the scale of the features.",
            )
        few = self._batch.head(max(2, self._batch.rows // 8))
        floor = find_floor(self._attempt.loss, few, self._outputs)
        learned = floor.gap > 0 and (
            self._try(f"{few.rows} rows", batch=few, floor=floor).reached is not None
        )
        count = sum(p.numel() for p in self._network.parameters() if p.requires_grad)
        wanted = self._batch.rows * self._outputs
        if learned or count < wanted:
            return _failed(
                "too-small",
                f"{count:,} parameters for {wanted:,} outputs leave {_percent(real)} excess"
                + (f"; they do learn {few.rows} rows." if learned else "."),
                "Give the network more units; where it is meant to be as small as this, lower "
                f"gate.rows (now {self._batch.rows}).",
            )
        if real.ended == "diverged":
            return _failed("exploding", "The loss becomes infinite at every rate tried.", "")
        return _failed(
            "network",
            f"{_percent(real)} excess is left, {few.rows} rows alone are not learned either, and a "
            "plain MLP learns them all.",
            "Look at what the network does to its input.",
        )

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
        attempt = self._attempt
        if learning_rate:
            told = attempt.settings.model_copy(update={"learning_rate": learning_rate})
            attempt = replace(attempt, settings=told)
        attempt = replace(attempt, steps=steps or max(500, attempt.steps // 2))
        trace = memorise(
            name, network or self._network, batch or self._batch, floor or self._floor, attempt
        )
        self._findings.traces.append(trace)
        return trace


def _standardised(values: Tensor) -> Tensor:
    spread = values.std(0)
    return (values - values.mean(0)) / torch.where(spread > 0, spread, 1.0)


def _percent(trace: Trace) -> str:
    return f"{100 * min(trace.best, 1e6):.3g}%"


def _failed(code: str, said: str, remedy: str, *, status: str = "fail") -> Check:
    return Check(
        name=LEARNED,
        status="undetermined" if status == "undetermined" else "fail",
        code=code,
        said=said,
        remedy=remedy,
    )
