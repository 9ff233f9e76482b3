"""Every written-out gradient against torch's differentiation of the textbook expression."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kubestill.runtime.training.losses import Distillation, DistillationMSE, build_loss

ROWS, CLASSES, T = 12, 4, 3.0


def setup() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    teacher = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    return outputs.requires_grad_(), teacher, labels


def check(value: Tensor, gradient: Tensor, textbook: Tensor, outputs: Tensor) -> None:
    torch.testing.assert_close(value, textbook.detach())
    (wanted,) = torch.autograd.grad(textbook, outputs)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("name", "textbook"),
    [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)],
    ids=["mse", "l1", "huber"],
)
def test_regression(name: str, textbook) -> None:
    outputs, wanted, _ = setup()
    value, gradient = build_loss(name)(outputs.detach(), (wanted,))
    check(value, gradient, textbook(outputs, wanted), outputs)


def test_cross_entropy() -> None:
    outputs, _, labels = setup()
    value, gradient = build_loss("cross_entropy")(outputs.detach(), (labels,))
    check(value, gradient, F.cross_entropy(outputs, labels), outputs)


def test_binary_cross_entropy() -> None:
    outputs, teacher, _ = setup()
    labels = (teacher > 0).double()[:, :1]
    one = outputs[:, :1]
    value, gradient = build_loss("binary_cross_entropy")(one.detach(), (labels,))
    textbook = F.binary_cross_entropy_with_logits(one, labels)
    torch.testing.assert_close(value, textbook.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(textbook, outputs)[0][:, :1])


def test_distillation_is_hinton_et_al_with_t_squared() -> None:
    outputs, teacher, _ = setup()
    soft = torch.softmax(teacher / T, 1)
    value, gradient = Distillation(temperature=T)(outputs.detach(), (soft,))
    textbook = T**2 * F.kl_div(torch.log_softmax(outputs / T, 1), soft, reduction="batchmean")
    check(value, gradient, textbook, outputs)


def test_distillation_weighs_labels_only_where_a_row_has_one() -> None:
    outputs, teacher, labels = setup()
    labels = torch.where(torch.arange(ROWS) < 5, -1, labels)
    soft = torch.softmax(teacher / T, 1)
    loss = Distillation(temperature=T, hard_weight=0.3)
    value, gradient = loss(outputs.detach(), (soft, labels))
    kl = T**2 * F.kl_div(torch.log_softmax(outputs / T, 1), soft, reduction="none").sum(1)
    hard = F.cross_entropy(outputs, labels.clamp(min=0), reduction="none")
    textbook = torch.where(labels < 0, kl, 0.7 * kl + 0.3 * hard).mean()
    check(value, gradient, textbook, outputs)


def test_binary_distillation() -> None:
    outputs, teacher, labels = setup()
    one, soft = outputs[:, :1], torch.sigmoid(teacher[:, :1] / T)
    labels = (labels > 1).long()
    value, gradient = Distillation(temperature=T, hard_weight=0.5)(one.detach(), (soft, labels))
    student = torch.sigmoid(one / T)
    kl = soft * (soft / student).log() + (1 - soft) * ((1 - soft) / (1 - student)).log()
    hard = F.binary_cross_entropy_with_logits(one, labels[:, None].double(), reduction="none")
    textbook = (0.5 * T**2 * kl + 0.5 * hard).mean()
    torch.testing.assert_close(value, textbook.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(textbook, outputs)[0][:, :1])


def test_regression_distillation_skips_missing_targets() -> None:
    outputs, teacher, _ = setup()
    hard = torch.where(teacher > 0, teacher * 2, torch.nan)
    value, gradient = DistillationMSE(hard_weight=0.2)(outputs.detach(), (teacher, hard))
    soft_error = (outputs - teacher).square()
    mixed = 0.8 * soft_error + 0.2 * (outputs - hard.nan_to_num()).square()
    check(value, gradient, torch.where(hard.isnan(), soft_error, mixed).mean(), outputs)


def test_a_perfect_student_costs_nothing() -> None:
    _, teacher, _ = setup()
    soft = torch.softmax(teacher / T, 1)
    value, gradient = Distillation(temperature=T)(teacher, (soft,))
    assert abs(value) < 1e-12
    assert gradient.abs().max() < 1e-12
