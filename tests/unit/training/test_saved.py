"""What a checkpoint says beside its tensors is checked whole before anybody follows it."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from kubestill.errors import CorruptData
from kubestill.runtime.checkpoints.ledger import Checkpoint, read_ledger_artifact
from kubestill.runtime.checkpoints.restore import load_state
from kubestill.runtime.training.saved import read_saved

READ_BY_NAME = (
    *("step", "losses_since", "seconds", "stop", "resolved"),
    *("curves", "curves/train", "curves/validation", "stopping", "stopping/metric"),
    *("kept", "kept/schedule_from", "kept/schedule_steps", "kept/data_from"),
    "kept/steps_per_epoch",
    *("model_spec", "model_spec/network", "model_spec/network/factory", "model_spec/network/args"),
    *("settings", "settings/network", "settings/network_args", "settings/optimizer"),
    *("settings/optimizer_args", "settings/learning_rate", "settings/schedule"),
)
GONE = object()


def test_what_the_engine_writes_passes_and_every_damage_to_what_is_read_is_refused(
    train: Callable[..., Path],
) -> None:
    ledger = read_ledger_artifact(str(train() / "ledger"))
    meta = json.loads(json.dumps(load_state(Checkpoint.of(ledger, ledger.milestones[-1])).meta))
    read_saved(meta, "here")
    for path in READ_BY_NAME:
        for wrong in (GONE, {"x": {}} if path == "step" else [[]], -0.5j):
            with pytest.raises(CorruptData, match="here is not a saved training run"):
                read_saved(damaged(meta, path.split("/"), wrong), "here")


def damaged(meta: dict[str, Any], path: list[str], wrong: object) -> dict[str, Any]:
    copy = deepcopy(meta)
    *folders, name = path
    inner = copy
    for folder in folders:
        inner = inner[folder]
    if wrong is GONE:
        del inner[name]
    else:
        inner[name] = wrong
    return copy
