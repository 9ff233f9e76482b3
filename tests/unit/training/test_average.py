"""The moving average of the weights, which is what gets evaluated and exported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from kubestill.runtime.models.export import load_model

X = np.linspace(-1, 1, 100, dtype=np.float32)


def test_the_average_of_a_short_training_has_forgotten_where_it_began(
    train: Callable[..., Path],
) -> None:
    def rmse(decay: float) -> float:
        out = train(str(decay), steps=120, settings={"ema_decay": decay})
        predicted = load_model(str(out / "model"))(pd.DataFrame({"x": X}))["prediction"]
        return float(np.sqrt(np.mean((predicted - 3 * X) ** 2)))

    assert rmse(0.0) < 0.05
    assert rmse(0.999) < 0.2  # most of 0.999's memory would be the initial weights, off by 1.7
