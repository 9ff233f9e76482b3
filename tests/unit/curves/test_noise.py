import math
import random

import pytest

from kubestill.runtime.curves.noise import half_window, noise, settled_noise, smooth


def white(count: int, *, sigma: float, seed: int) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(0, sigma) for _ in range(count)]


@pytest.mark.parametrize("slope", [0.0, 3.0, -0.2])
def test_noise_ignores_a_slope(slope: float):
    values = [slope * i + e for i, e in enumerate(white(400, sigma=0.1, seed=1))]
    assert noise(values) == pytest.approx(0.1, rel=0.2)


def test_noise_of_a_straight_line_is_zero():
    assert noise([0.5 * i for i in range(20)]) == pytest.approx(0, abs=1e-12)


def test_noise_ignores_spikes():
    values = white(400, sigma=0.1, seed=2)
    for index in range(0, 400, 40):
        values[index] += 100
    assert noise(values) == pytest.approx(0.1, rel=0.3)


def test_correlated_noise_is_not_taken_for_smoothness():
    values = [0.0]
    for e in white(1000, sigma=1, seed=3):
        values.append(0.7 * values[-1] + e)
    true = 1 / math.sqrt(1 - 0.7**2)
    assert noise(values) > 0.7 * true
    assert noise(values[:15]) < noise(values)  # one lag only: it looks smoother than it is


def test_settled_noise_leaves_the_steep_part_out():
    clean = [math.exp(-i) for i in range(12)]
    noisy = [a + e for a, e in zip(clean, white(12, sigma=0.001, seed=4), strict=True)]
    assert settled_noise(noisy) < 0.01


def test_smoothing_removes_a_spike_and_keeps_the_start():
    values = [10.0, 5.0, 2.0, 1.0, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0]
    smoothed = smooth(values, 1)
    assert smoothed[0] == 10
    assert max(smoothed[4:]) == 1
    assert len(smoothed) == len(values)


@pytest.mark.parametrize(("count", "half"), [(3, 1), (30, 2), (200, 10)])
def test_window_grows_with_the_curve(count: int, half: int):
    assert half_window(count) == half
