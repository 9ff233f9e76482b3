"""A second-order finish, killed in its middle: the result must not show it."""

import re
import time
from pathlib import Path
from typing import Any

from chaos import copy_of, digest
from worker import finish, kill, start

PARAMETERS = {"network_args": {"hidden": [24]}, "epochs": 1}
SETTINGS: dict[str, Any] = {"ema_decay": 0.0, "finish_steps": 60, "finish_history": 9}


def _steps_of_the_finish(root: Path) -> int:
    """Count the lines about steps of the finish that the newest attempt has printed."""
    log = root / "log"
    printed = log.read_text() if log.exists() else ""
    steps = [re.findall(r"[\d,]+", line) for line in re.findall(r" step +([\d,]+/[\d,]+)", printed)]
    numbers = [[int(one.replace(",", "")) for one in pair] for pair in steps]
    return sum(step > total - SETTINGS["finish_steps"] for step, total in numbers)


def test_killed_in_the_finish_the_bits_are_the_same(data: Path, tmp_path: Path) -> None:
    calm = copy_of(data, tmp_path / "calm")
    finish(start(calm, str(tmp_path / "one"), parameters=PARAMETERS, settings=SETTINGS), calm)
    root, store = copy_of(data, tmp_path / "root"), str(tmp_path / "two")
    kills = 0
    for _ in range(3):
        process = start(root, store, parameters=PARAMETERS, settings=SETTINGS)
        # Not after a time: on a quick machine the run is over by then.
        while process.is_alive() and _steps_of_the_finish(root) < 2:
            time.sleep(0.002)
        kills += kill(process)
    output = finish(start(root, store, parameters=PARAMETERS, settings=SETTINGS), root)
    assert kills
    resumed = re.search(r"from step (\d+)", output)
    assert resumed, output
    assert digest(root) == digest(calm)
