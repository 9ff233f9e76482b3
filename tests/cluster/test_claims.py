"""A window of rows belongs to the run that took it while that run lives, and no longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from rows import ROWS, parameters, put_month
from session import Cluster, wait_for

from kubestill.errors import KubestillError
from kubestill.runtime.retraining import open_registry

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

FOLDER = "claimed"
AS_OF = "2013-02-01"


def start(cluster: Cluster, as_of: str = AS_OF, **more: object) -> str:
    return cluster.begin("continuous-retraining", **parameters(cluster, FOLDER, as_of, **more))


def claimant(cluster: Cluster) -> Callable[[], str | None]:
    """Ask the store which run holds the rows."""

    def look() -> str | None:
        try:
            claim = open_registry(f"{cluster.root}/{FOLDER}-registry").read().claim
        except KubestillError:
            return None
        return claim.run_id if claim else None

    return look


def entry(cluster: Cluster, run_id: str) -> dict[str, Any]:
    uri = f"{cluster.root}/{FOLDER}-registry"
    runs = json.loads(cluster.kubestill("registry", "ls", uri, "--json").out)
    return next(one for one in runs if one["run_id"] == run_id)


@pytest.fixture(scope="module")
def holder(stored: Cluster) -> str:
    """A run that has taken the rows and will train for longer than anybody waits."""
    put_month(stored, FOLDER, 1)
    run_id = start(stored, epochs=1_000_000)
    wait_for(claimant(stored), "the first run to claim its rows")
    return run_id


def test_a_run_that_lives_keeps_its_rows(stored: Cluster, holder: str) -> None:
    second = start(stored)
    assert stored.wait_for_end(second) == "SUCCEEDED"
    assert entry(stored, second)["outcome"] == "busy"
    assert claimant(stored)() == holder
    assert stored.state(holder) == "RUNNING"


def test_a_run_that_was_stopped_gives_them_up_at_once(stored: Cluster, holder: str) -> None:
    # As the button in Kubeflow's UI does it: nobody tells the registry.
    assert stored.ask("POST", f"v2beta1/runs/{holder}:terminate").status_code == 200
    assert stored.wait_for_end(holder, 180) == "FAILED"
    assert stored.history(holder)[-2:] == ["CANCELING", "FAILED"]
    # A terminated run's exit handler is skipped by one Kubeflow and run by another.
    assert claimant(stored)() in (holder, None)
    third = start(stored)
    assert stored.wait_for_end(third) == "SUCCEEDED"
    assert entry(stored, third)["outcome"] == "promoted"
    assert entry(stored, third)["rows"] == ROWS
    assert entry(stored, holder)["outcome"] in ("abandoned", "failed")


def test_runs_stop_gives_them_up_as_well(stored: Cluster) -> None:
    put_month(stored, FOLDER, 2, drift=1.6)
    run_id = start(stored, "2013-03-01", finetune_epochs=1_000_000)
    wait_for(claimant(stored), "the run to claim its rows")
    done = stored.kubestill("runs", "stop", run_id)
    assert done.code == 0, done.out
    assert stored.wait_for_end(run_id, 180) == "FAILED"
    assert claimant(stored)() is None
