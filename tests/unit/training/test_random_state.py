import random

import numpy as np
import torch

from kubestill.runtime.training import random_state


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), float(torch.rand(()))]


def test_generators_go_on_from_where_they_were() -> None:
    random_state.seed_everything(3)
    draw()
    state = random_state.capture()
    expected = [draw(), draw()]
    random_state.seed_everything(99)
    random_state.restore(state)
    assert [draw(), draw()] == expected


def test_a_state_may_be_a_view_into_a_larger_block() -> None:
    """As restored tensors are; torch would read from the block's start."""
    random_state.seed_everything(3)
    state = random_state.capture()
    expected = draw()
    block = torch.cat([torch.zeros(64, dtype=torch.uint8), state["torch"]])
    random_state.restore(state | {"torch": block[64:]})
    assert draw() == expected
