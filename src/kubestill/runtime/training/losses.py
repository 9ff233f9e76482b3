"""Losses with their gradients written out.

Each loss gives its value and its gradient with respect to the network's output. The autograd step
and the fused step share them, so the two cannot drift apart; a test holds every gradient against
torch's own differentiation of the textbook expression.

B is the batch, K the classes (1 for binary), T the regression targets. Regression outputs and
targets are standardised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

NAMES = (
    "cross_entropy",
    "binary_cross_entropy",
    "mse",
    "l1",
    "huber",
    "relative_l2",
    "distillation",
    "distillation_mse",
)
_BY_TASK = {
    "multiclass": ("cross_entropy", "distillation"),
    "binary": ("binary_cross_entropy", "distillation"),
    "regression": ("mse", "l1", "huber", "relative_l2", "distillation_mse"),
}

Targets = tuple[Tensor, ...]


class Loss(Protocol):
    """A mean over the rows of a batch."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient of the value with respect to outputs [B, K])."""
        ...

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B], whose mean is the value."""
        ...


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Any loss with a weight a row, the last of the targets: float32 [B], 1 on average over all.

    The mean over a batch is one over its rows, not over their weights: a row then counts the same
    whichever others are in its batch, as if it were there `weight` times.
    """

    loss: Loss

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, K])."""
        *given, weights = targets
        value = self.each(outputs, targets).mean()
        _, gradient = self.loss(outputs, tuple(given))
        return value, gradient.mul_(weights[:, None])

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the weighted loss of each row [B]."""
        *given, weights = targets
        return self.loss.each(outputs, tuple(given)) * weights


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Any loss for a network whose members all answer every row in training, [B, M, K].

    Each member learns by itself, so that their errors differ: the loss of their mean answer would
    make them one large network (Gorishniy et al. 2024, section 3).
    """

    loss: Loss

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (mean over rows and members [], gradient [B, M, K]); also takes [B, K]."""
        if outputs.dim() == 2:
            return self.loss(outputs, targets)
        members = outputs.shape[1]
        repeated = tuple(target.repeat_interleave(members, 0) for target in targets)
        value, gradient = self.loss(outputs.flatten(0, 1), repeated)
        return value, gradient.view(outputs.shape)

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row's mean answer [B]."""
        return self.loss.each(outputs, targets)


def loss_names(task: str) -> tuple[str, ...]:
    """Return the losses that fit a task, the default first."""
    return _BY_TASK[task]


class CrossEntropy:
    """Negative log-likelihood of the true class; targets: index int64 [B], or shares [B, K]."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, K])."""
        (labels,) = targets
        if labels.is_floating_point():
            each, gradient = _per_row_hard(outputs, labels, binary=False)
            return each.mean(), gradient.div_(len(outputs))
        log_p = torch.log_softmax(outputs, 1)
        value = F.nll_loss(log_p, labels)
        gradient = log_p.exp_()
        gradient[_rows(outputs), labels] -= 1.0
        return value, gradient.div_(len(outputs))

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        return F.cross_entropy(outputs, targets[0], reduction="none")


class BinaryCrossEntropy:
    """Negative log-likelihood of a 0/1 label; targets: float32 [B, 1]."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, 1])."""
        (labels,) = targets
        value = F.binary_cross_entropy_with_logits(outputs, labels)
        return value, torch.sigmoid(outputs).sub_(labels).div_(len(outputs))

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        return F.binary_cross_entropy_with_logits(outputs, targets[0], reduction="none")[:, 0]


class MeanSquaredError:
    """Mean of squared errors; targets: float32 [B, T]."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, T])."""
        (wanted,) = targets
        error = outputs - wanted
        # What F.mse_loss calls, less its check of shapes (35 us of a student's 700).
        value = aten.mse_loss(outputs, wanted)
        return value, error.mul_(2.0 / error.numel())

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        return (outputs - targets[0]).square().mean(1)


class MeanAbsoluteError:
    """Mean of absolute errors; targets: float32 [B, T]."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, T])."""
        (wanted,) = targets
        error = outputs - wanted
        return error.abs().mean(), error.sign_().div_(error.numel())

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        return (outputs - targets[0]).abs().mean(1)


class Huber:
    """Quadratic below one standard deviation of error, linear above (Huber 1964, delta = 1)."""

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, T])."""
        (wanted,) = targets
        error = outputs - wanted
        return F.huber_loss(outputs, wanted), error.clamp_(-1.0, 1.0).div_(error.numel())

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        return F.huber_loss(outputs, targets[0], reduction="none").mean(1)


class RelativeL2:
    """Mean over rows of ||error|| / ||target||, as neural operators are trained (Li et al. 2020).

    Targets: float32 [B, T], standardised; norms go over the T values of a row.
    """

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, T])."""
        error, length, scale = self._parts(outputs, targets)
        tiny = torch.finfo(error.dtype).tiny
        gradient = error / (length.clamp(min=tiny) * scale * len(outputs))
        return (length / scale).mean(), gradient

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        _, length, scale = self._parts(outputs, targets)
        return (length / scale)[:, 0]

    def _parts(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Return errors [B, T], their norms [B, 1] and those of the targets [B, 1]."""
        (wanted,) = targets
        error = outputs - wanted
        length = torch.linalg.vector_norm(error, dim=1, keepdim=True)
        scale = torch.linalg.vector_norm(wanted, dim=1, keepdim=True).clamp_(min=1e-6)
        return error, length, scale


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Match the teacher's softened probabilities, beside the true label where a row has one.

    A row with a label costs `(1 - hard_weight) T^2 KL(teacher_T || student_T) + hard_weight CE`;
    one without, as generated rows are, costs `T^2 KL` alone. T^2 keeps the two gradients on one
    scale whatever the temperature (Hinton et al. 2015, section 2). Targets: the teacher's
    probabilities at T [B, K] and, when `hard_weight` is above zero, class index int64 [B], -1 where
    there is none; or shares of classes [B, K], NaN where there are none.
    """

    temperature: float
    hard_weight: float = 0.0

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, K])."""
        value, gradient = self._by_row(outputs, targets)
        return value.mean(), gradient.div_(len(outputs))

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        return self._by_row(outputs, targets)[0]

    def _by_row(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss of each row [B] and its gradient by the row's outputs [B, K]."""
        teacher = targets[0]
        binary = outputs.shape[1] == 1
        scaled = outputs / self.temperature
        if binary:
            log_p, student = None, torch.sigmoid(scaled)
            # Divergence of two Bernoullis; the teacher's own entropy makes a perfect match cost
            # zero.
            soft = F.binary_cross_entropy_with_logits(scaled, teacher, reduction="none")[:, 0]
            soft = soft + torch.special.xlogy(teacher, teacher)[:, 0]
            soft = soft + torch.special.xlogy(1 - teacher, 1 - teacher)[:, 0]
        else:
            log_p = torch.log_softmax(scaled, 1)
            student = log_p.exp()
            soft = F.kl_div(log_p, teacher, reduction="none").sum(1)
        value = soft * self.temperature**2
        gradient = student.sub_(teacher).mul_(self.temperature)
        if self.hard_weight > 0:
            labels = targets[1]
            labelled = labels >= 0 if labels.dim() == 1 else (labels >= 0).all(1)
            hard, hard_gradient = _per_row_hard(outputs, labels.clamp(min=0).nan_to_num(), binary)
            weight = labelled.to(outputs.dtype) * self.hard_weight
            value = value * (1 - weight) + hard * weight
            gradient = torch.lerp(gradient, hard_gradient, weight[:, None])
        return value, gradient


@dataclass(frozen=True, kw_only=True)
class DistillationMSE:
    """Match the teacher's prediction, beside the true target where a row has one.

    Targets: the teacher's prediction [B, T] and, when `hard_weight` is above zero, the true target
    [B, T], NaN where there is none.
    """

    hard_weight: float = 0.0

    def __call__(self, outputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return (value [], gradient [B, T])."""
        error = outputs - targets[0]
        if self.hard_weight == 0:
            return error.square().mean(), error.mul_(2.0 / error.numel())
        hard, weight = self._hard(outputs, targets[1])
        value = torch.lerp(error.square(), hard.square(), weight)
        return value.mean(), torch.lerp(error, hard, weight).mul_(2.0 / error.numel())

    def each(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Return the loss of each row [B]."""
        square = (outputs - targets[0]).square()
        if self.hard_weight == 0:
            return square.mean(1)
        hard, weight = self._hard(outputs, targets[1])
        return torch.lerp(square, hard.square(), weight).mean(1)

    def _hard(self, outputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors by the true targets [B, T], and what they count [B, T]."""
        labelled = ~torch.isnan(wanted)
        hard = torch.where(labelled, outputs - wanted, 0.0)
        return hard, labelled.to(outputs.dtype) * self.hard_weight


def build_loss(name: str, *, temperature: float = 1.0, hard_weight: float = 0.0) -> Loss:
    """Return the loss called `name`."""
    match name:
        case "cross_entropy":
            return CrossEntropy()
        case "binary_cross_entropy":
            return BinaryCrossEntropy()
        case "mse":
            return MeanSquaredError()
        case "l1":
            return MeanAbsoluteError()
        case "huber":
            return Huber()
        case "relative_l2":
            return RelativeL2()
        case "distillation":
            return Distillation(temperature=temperature, hard_weight=hard_weight)
        case "distillation_mse":
            return DistillationMSE(hard_weight=hard_weight)
        case _:
            raise AssertionError(f"unvalidated loss {name!r}")


def differentiable(loss: Loss, outputs: Tensor, targets: Targets) -> Tensor:
    """Return the loss as a node of autograd's graph whose backward is the written-out gradient."""
    return _Node.apply(outputs, loss, targets)  # type: ignore[no-any-return]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx, outputs, loss, targets):  # noqa: D102  # pyright: ignore
        value, gradient = loss(_at_least_single(outputs), targets)
        ctx.save_for_backward(gradient.to(outputs.dtype))
        return value

    @staticmethod
    def backward(ctx, upstream):  # noqa: D102  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def _at_least_single(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _per_row_hard(outputs: Tensor, labels: Tensor, binary: bool) -> tuple[Tensor, Tensor]:
    """Return cross-entropy by row [B] and its gradient by row [B, K]."""
    if binary:
        wanted = labels.reshape(-1, 1).to(outputs.dtype)
        value = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")[:, 0]
        return value, torch.sigmoid(outputs) - wanted
    log_p = torch.log_softmax(outputs, 1)
    if labels.is_floating_point():
        return -(labels * log_p).sum(1), log_p.exp().mul_(labels.sum(1, keepdim=True)).sub_(labels)
    gradient = log_p.exp()
    gradient[_rows(outputs), labels] -= 1.0
    return F.nll_loss(log_p, labels, reduction="none"), gradient


def _rows(outputs: Tensor) -> Tensor:
    return torch.arange(len(outputs), device=outputs.device)
