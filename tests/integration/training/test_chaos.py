"""Real training processes, killed at random moments: the result must not show it."""

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from chaos import copy_of, digest
from worker import finish, kill, start

KILLS = int(os.environ.get("KUBESTILL_CHAOS_KILLS", "5"))
"""Of each store; `make bench-chaos` asks for hundreds."""


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    root = copy_of(data, tmp_path_factory.mktemp("calm") / "run")
    finish(start(root, str(root / "store"), "calm"), root)
    return digest(root)


@pytest.fixture(params=["local", "gcs", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue(request.param).uri}/chaos"


def test_killed_again_and_again_the_bits_are_the_same(
    data: Path, tmp_path: Path, store: str, undisturbed: tuple[str, int]
) -> None:
    """SIGKILL at random moments, in the middle of writes and swaps included."""
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    kills = trainings = 0
    resumed_from: set[str] = set()
    # SeaweedFS takes ten times as long for a commit: fewer of them.
    most = max(1, KILLS // 4) if store.startswith("s3://") else KILLS
    while kills < most:
        root, place = copy_of(data, tmp_path / f"run-{trainings}"), f"{store}/{trainings}"
        for _ in range(most - kills):
            if not interrupt(root, place, moments):
                break
            kills += 1
            resumed_from |= set(re.findall(r"from step ([\d,]+)", _log(root)))
        trainings += 1
        output = finish(start(root, place), root)
        assert digest(root) == undisturbed, f"seed {seed}, after {kills} kills\n{output}"
        ledger = json.loads((root / "ledger").read_text())
        assert not [entry for entry in ledger["entries"] if entry["damaged"]]
    print(
        f"{kills} kills of {trainings} trainings, resumed from {len(resumed_from)} steps: "
        "every model has the undisturbed bits"
    )


def interrupt(root: Path, place: str, moments: random.Random) -> bool:
    """Kill a training at a random moment; False where it got through before."""
    process = start(root, place)
    while process.is_alive() and not re.search("^training |adopted", _log(root), re.MULTILINE):
        time.sleep(0.005)
    # Early ones fall into the first commits; late ones anywhere, up to the export of the model.
    time.sleep(moments.uniform(0.0, moments.choice([0.1, 0.4, 1.0])))
    return kill(process) and "adopted" not in _log(root)


def test_a_finished_training_is_adopted_within_seconds(
    data: Path, tmp_path: Path, undisturbed: tuple[str, int]
) -> None:
    store = str(tmp_path / "store")
    first, second = copy_of(data, tmp_path / "first"), copy_of(data, tmp_path / "second")
    finish(start(first, store, "run-1"), first)
    output = finish(start(second, store, "run-2"), second)
    assert "adopted" in output
    assert "epoch" not in output
    assert digest(first) == digest(second) == undisturbed


def test_other_settings_train_anew(
    data: Path, tmp_path: Path, undisturbed: tuple[str, int]
) -> None:
    root = copy_of(data, tmp_path / "run")
    finish(start(root, str(tmp_path / "store"), parameters={"seed": 1}), root)
    assert digest(root)[0] != undisturbed[0]


def _log(root: Path) -> str:
    return (root / "log").read_text() if (root / "log").exists() else ""
