"""Checks of the loss: the right answer costs least, its gradient is its own, and it is a mean."""

from __future__ import annotations

import torch
from torch import Tensor

from kubestill.runtime.sanity.batch import Batch
from kubestill.runtime.sanity.findings import Check
from kubestill.runtime.sanity.floor import in_double
from kubestill.runtime.training.losses import Loss, Targets


def check_loss(loss: Loss, batch: Batch, perfect: Tensor | None, *, outputs: int) -> Check:
    """Compare the cost of the right answers [B, K] with 0, the gradient with finite differences."""
    name = "the loss is the task's"
    targets = in_double(batch.targets)
    generator = torch.Generator().manual_seed(0)
    guess = torch.randn(batch.rows, outputs, generator=generator, dtype=torch.float64)
    error = _gradient_error(loss, guess, targets, generator)
    if error > 1e-3:
        return _wrong(
            name,
            f"its gradient differs from its slope by {100 * error:.3g}%, so that steps "
            "do not lead downhill",
        )
    if perfect is None:
        said = "Its gradient is its slope; soft and hard labels differ, so no answer costs 0."
        return Check(name=name, status="ok", said=said)
    cost, usual = float(loss(perfect, targets)[0]), float(loss(guess, targets)[0])
    if abs(cost) > 1e-3 * max(abs(usual), 1e-3):
        return _wrong(name, f"the right answers cost {cost:.3g} instead of 0")
    return Check(
        name=name, status="ok", said="The right answers cost 0; its gradient is its slope."
    )


def check_reduction(loss: Loss, batch: Batch, *, outputs: int) -> Check:
    """Check that the loss is a mean: every row twice costs what every row once does."""
    name = "the loss is a mean over rows"
    targets = in_double(batch.targets)
    guess = torch.full((batch.rows, outputs), 0.5, dtype=torch.float64)
    once, slope = loss(guess, targets)
    twice, half = loss(guess.repeat(2, 1), tuple(torch.cat([target, target]) for target in targets))
    grown = float(twice) / float(once) if float(once) else 1.0
    steeper = float(half.norm()) / max(float(slope.norm()), 1e-300) * 2**0.5
    if abs(grown - 1) > 1e-3 or abs(steeper - 1) > 1e-3:
        return Check(
            name=name,
            status="fail",
            code="reduction",
            said=f"With every row twice the loss is {grown:.3g} times as high, its gradient "
            f"{steeper:.3g} times.",
            remedy="Take the mean over the rows: otherwise the learning rate hangs on batch_size.",
        )
    return Check(name=name, status="ok", said="Every row twice costs what every row once does.")


def _wrong(name: str, what: str) -> Check:
    return Check(
        name=name,
        status="fail",
        code="loss",
        said=f"The loss does not fit: {what}.",
        remedy="Use the task's own loss.",
    )


def _gradient_error(
    loss: Loss, guess: Tensor, targets: Targets, generator: torch.Generator
) -> float:
    """Return the relative error of the gradient along one random direction."""
    direction = torch.randn(guess.shape, generator=generator, dtype=torch.float64)
    width = 1e-6
    above, below = (loss(guess + side * width * direction, targets)[0] for side in (1, -1))
    slope = float(above - below) / (2 * width)
    # A loss may write over what it was given.
    told = float((loss(guess.clone(), targets)[1] * direction).sum())
    return abs(told - slope) / max(abs(told), abs(slope), 1e-12)


def right_answers(batch: Batch, *, task: str, outputs: int, temperature: float) -> Tensor | None:
    """Return outputs [B, K] in float64 that are right; None where soft and hard labels disagree."""
    if len(batch.targets) > 1:
        return None
    (first,) = in_double(batch.targets)
    if not first.is_floating_point():
        return 60.0 * torch.nn.functional.one_hot(first.clamp(min=0), outputs).double()
    if task == "regression":
        return first
    clipped = first.clamp(1e-30, 1 - 1e-16) if task == "binary" else first.clamp(min=1e-30)
    return temperature * (torch.logit(clipped) if task == "binary" else clipped.log())
