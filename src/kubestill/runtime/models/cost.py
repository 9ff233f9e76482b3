"""How many operations a model takes; `evaluation.cost` times it."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from kubestill.runtime.models.model import Model


def flops_per_example(model: Model) -> int:
    """Count the matrix products, convolutions and attention of one example.

    A multiply-add counts as two operations. Preprocessing and activations are not counted.
    """
    raw = torch.zeros(1, model.encoder.raw_width, device=model.device)
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(raw)
    model.train(training)
    return counter.get_total_flops()
