"""A run in a process of its own."""

import sys
from pathlib import Path

# The scene that the unit tests of collect-fresh are set in.
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "retraining"))
from scene import Scene, rows  # noqa: E402  # pyright: ignore

__all__ = ["Scene", "rows", "whole_run"]


def whole_run(folder: str, run_id: str, decision: str) -> None:
    """Everything a run does to the registry, in one process."""
    scene = Scene(Path(folder))
    taken = scene.run("2014-01-01", run_id, lease_hours=1e-9)
    if taken.status in ("ready", "bootstrap") and decision == "promote":
        scene.promote(taken)
    else:
        scene.judged(taken, decision)
