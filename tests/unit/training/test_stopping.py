import pytest

from kubestill.runtime.training.stopping import Stopping


def feed(stopping: Stopping, values: list[float]) -> tuple[int, tuple[str, str] | None]:
    for step, value in enumerate(values, start=1):
        if verdict := stopping.update(step, value):
            return step, verdict
    return len(values), None


@pytest.mark.parametrize(
    ("values", "stops_at"),
    [
        ([3, 2, 1, 1.1, 1.2, 1.3], 6),
        ([3, 2, 1, 1.1, 0.9, 1.2, 1.3], None),
        ([3, 3, 3, 3], 4),
    ],
    ids=["rises", "recovers", "flat"],
)
def test_patience(values: list[float], stops_at: int | None) -> None:
    step, verdict = feed(Stopping(metric="log_loss", patience=3), values)
    assert (step if verdict else None) == stops_at
    assert verdict is None or verdict[0] == "early-stopping"


def test_higher_is_better_for_accuracy() -> None:
    stopping = Stopping(metric="accuracy", patience=2)
    assert feed(stopping, [0.5, 0.9, 0.8, 0.7, 0.6])[0] == 4
    assert (stopping.best_step, stopping.best_value) == (2, 0.9)


def test_small_gains_count_only_once_they_add_up() -> None:
    stopping = Stopping(metric="loss", patience=3, min_delta=0.25)
    assert feed(stopping, [1.0, 0.9, 0.8, 0.7, 0.6])[1] is None
    assert stopping.best_step == 5


def test_a_tie_keeps_the_earlier_one() -> None:
    stopping = Stopping(metric="loss")
    feed(stopping, [1.0, 0.5, 0.5])
    assert stopping.best_step == 2


def test_tolerance() -> None:
    step, verdict = feed(Stopping(metric="rmse", tolerance=0.1), [1.0, 0.2, 0.1, 0.05])
    assert step == 3
    assert verdict
    assert verdict[0] == "tolerance"


def test_state_round_trip() -> None:
    one = Stopping(metric="loss", patience=2)
    feed(one, [1.0, 1.1])
    two = Stopping(**one.to_json())
    assert one.update(3, 1.2) == two.update(3, 1.2)


def settle(metric: str, values: list[float]) -> str:
    stopping = Stopping(metric=metric, converged_after=2)
    for step, value in enumerate(values, start=1):
        if verdict := stopping.update(step, value, settled=True):
            return verdict[0]
    return ""


@pytest.mark.parametrize("metric", ["r2", "accuracy", "rmse", "log_loss", "error_rate"])
def test_converged_is_a_small_share_of_what_is_left_to_gain(metric: str) -> None:
    """An R² that goes from 0.99 to 0.992 has lost a fifth of its error."""
    errors = {
        "going on": [0.01 * 0.9**n for n in range(8)],
        "done": [0.01 * 0.999**n for n in range(8)],
    }
    upwards = metric in ("r2", "accuracy")
    for expected, left in errors.items():
        values = [1 - error for error in left] if upwards else left
        assert settle(metric, values) == ("converged" if expected == "done" else "")
