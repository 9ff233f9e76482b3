"""Whoever starts a run hears what failed and why; Retry does what is left, and nothing twice."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from probes import Probes
from rows import parameters
from session import Cluster, Done

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_a_step_of_ours_says_what_is_wrong(cluster: Cluster) -> None:
    done = cluster.run("distillation", dataset="digitz")
    assert done.code == 1, done.out
    assert cluster.state(done.run_id) == "FAILED"
    assert "import-dataset" in done.out
    assert "did you mean 'digits'" in done.out
    assert "Traceback" not in done.out


def test_the_history_keeps_the_cause_of_a_failed_run(stored: Cluster) -> None:
    given = parameters(stored, "nobody-delivers-here", "2013-02-01")
    done = stored.run("continuous-retraining", **given)
    assert done.code == 1, done.out
    assert stored.state(done.run_id) == "FAILED"
    assert "nobody-delivers-here" in done.out
    uri = str(given["registry"])
    (entry,) = json.loads(stored.kubestill("registry", "ls", uri, "--json").out)
    assert (entry["run_id"], entry["outcome"]) == (done.run_id, "failed")
    assert "nobody-delivers-here" in entry["reason"]


@pytest.fixture(scope="module")
def failed(stored: Cluster) -> Done:
    """A run whose first step succeeded, and whose second refused."""
    return stored.run(Probes(stored).permission(), root=f"{stored.root}/permission")


def objects(cluster: Cluster) -> Counter[str]:
    return Counter(entry.key.partition("-")[0] for entry in cluster.store("permission").list())


def test_a_strangers_step_is_heard_as_well(stored: Cluster, failed: Done) -> None:
    assert failed.code == 1, failed.out
    assert stored.state(failed.run_id) == "FAILED"
    assert "nobody has allowed counted yet" in failed.out
    assert "need" in failed.out
    tasks = stored.tasks(failed.run_id)
    assert (tasks["count"], tasks["need"]) == (Counter(SUCCEEDED=1), Counter(FAILED=1))
    assert objects(stored) == Counter(counted=1, tried=1)


def test_retry_goes_on_where_it_failed(stored: Cluster, failed: Done) -> None:
    stored.store("permission").put("allowed", b"")
    answer = stored.ask("POST", f"v2beta1/runs/{failed.run_id}:retry")
    assert answer.status_code == 200, answer.text
    assert stored.wait_for_success(failed.run_id)
    assert stored.history(failed.run_id)[-3:] == ["FAILED", "RUNNING", "SUCCEEDED"]
    assert objects(stored) == Counter(counted=1, tried=2, allowed=1)
