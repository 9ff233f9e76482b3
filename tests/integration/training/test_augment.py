"""A training run that is killed within an epoch goes on with the images that came next."""

from __future__ import annotations

from pathlib import Path

import pytest
from elastic import Attempt, Case, run

from kubestill.runtime.datasets.builtin import digits
from kubestill.runtime.datasets.handover import write_dataset

AUGMENT = {"shift": 1, "rotation": 15, "flip_horizontal": 0.5, "mixup": 0.4, "cutmix": 1.0}
CONV = {"network": "conv", "network_args": {"channels": [4, 8], "dropout": 0.2}}
ONE = Case(name="as a whole", network=CONV, leaves=1, settings={"augment": AUGMENT})
FOUR = Case(name="micro-batches", network=CONV, settings={"augment": AUGMENT})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits for training and validation, below one folder."""
    root = tmp_path_factory.mktemp("digits")
    table = digits()
    for name, rows in (("dataset", table[:200]), ("validation", table[200:260])):
        write_dataset(rows, str(root / name), target="digit")
    return root


@pytest.mark.parametrize(
    ("case", "killed"),
    [(ONE, Attempt(world=1, kill=(0,), at=10)), (FOUR, Attempt(world=2, kill=(0, 1), at=10))],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_a_run_that_is_killed_within_an_epoch_ends_with_the_same_bits(
    case: Case, killed: Attempt, images: Path, tmp_path: Path
) -> None:
    undisturbed = run(case, images, tmp_path / "alone", [Attempt(world=1)])
    assert run(case, images, tmp_path / "killed", [killed, Attempt(world=1)]) == undisturbed
