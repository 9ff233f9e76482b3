import pytest

from kubestill.errors import InvalidInput
from kubestill.runtime.metrics.direction import direction
from kubestill.runtime.metrics.scores import METRICS
from kubestill.runtime.training.validation import METRICS as FOLLOWED

EVALUATED = [metric for known in METRICS.values() for metric in known.values()]


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("loss", "min"),
        ("log_loss", "min"),
        ("train_loss", "min"),
        ("brier", "min"),
        ("accuracy", "max"),
        ("auc", "max"),
        ("r2", "max"),
        ("val_loss", "min"),
        ("validation/Accuracy", "max"),
        ("Log-Loss", "min"),
    ],
)
def test_names_are_known(metric: str, way: str):
    assert direction(metric) == way


@pytest.mark.parametrize("metric", EVALUATED, ids=lambda metric: metric.name)
def test_agrees_with_the_evaluation(metric):
    assert direction(metric.name) == ("max" if metric.better == "higher" else "min")


@pytest.mark.parametrize("metric", sorted({name for names in FOLLOWED.values() for name in names}))
def test_knows_what_a_training_follows(metric: str):
    assert direction(metric) in ("min", "max")


def test_unknown_offers_the_nearest():
    with pytest.raises(InvalidInput, match="'accuracy'"):
        direction("acuracy")
