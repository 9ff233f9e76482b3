"""A second-order finish, killed in its middle: the result must not show it."""

import re
import time
from pathlib import Path
from typing import Any

from chaos import copy_of, digest
from worker import finish, kill, start

PARAMETERS = {"network_args": {"hidden": [24]}, "epochs": 1}
SETTINGS: dict[str, Any] = {"ema_decay": 0.0, "finish_steps": 60, "finish_history": 9}


def test_killed_in_the_finish_the_bits_are_the_same(data: Path, tmp_path: Path) -> None:
    calm = copy_of(data, tmp_path / "calm")
    finish(start(calm, str(tmp_path / "one"), parameters=PARAMETERS, settings=SETTINGS), calm)
    root, store = copy_of(data, tmp_path / "root"), str(tmp_path / "two")
    kills = 0
    for pause in (0.3, 0.6, 0.9):
        process = start(root, store, parameters=PARAMETERS, settings=SETTINGS)
        log = root / "log"
        while process.is_alive() and not (log.exists() and "training " in log.read_text()):
            time.sleep(0.005)
        time.sleep(pause)
        kills += kill(process)
    output = finish(start(root, store, parameters=PARAMETERS, settings=SETTINGS), root)
    assert kills
    resumed = re.search(r"from step (\d+)", output)
    assert resumed, output
    assert digest(root) == digest(calm)
