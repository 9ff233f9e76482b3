"""Each cluster test breaks where the cluster is wrong: the tests run against a double that lies.

One session of pytest for each mutation, with the tests that must notice. Minutes long, so that it
runs where `KUBESTILL_TEST_MUTATIONS` is set: `make test-cluster MUTATIONS=1`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("KUBESTILL_TEST_MUTATIONS"),
        reason="minutes long, and about the tests: `make test-cluster MUTATIONS=1`",
    ),
]

HERE = Path(__file__).parent
PATIENCE_S = 120
"""How long a test waits for what a lying double will never say."""

MUTATIONS = {
    # What the server says of runs and tasks.
    "states-swapped": ["test_values.py::test_parameters_arrive_as_they_were_given"],
    "list-stands-still": ["test_values.py::test_an_optional_artifact_arrives"],
    "names-ignored": ["test_distillation.py::test_uploading_twice_makes_one_version"],
    # What passes between tasks.
    "metadata-dropped": ["test_values.py::test_an_optional_artifact_arrives"],
    "optional-dropped": ["test_values.py::test_an_optional_artifact_arrives"],
    "dicts-as-text": ["test_values.py::test_parameters_arrive_as_they_were_given"],
    "empty-dropped": ["test_values.py::test_parameters_that_nobody_gives"],
    "every-end-failed": ["test_retraining.py::test_where_nothing_is_new_the_rows_wait"],
    # Claims.
    "over-called-alive": ["test_claims.py::test_a_run_that_was_stopped_gives_them_up_at_once"],
    "alive-called-over": ["test_claims.py::test_a_run_that_lives_keeps_its_rows"],
    "never-stopped": ["test_claims.py::test_runs_stop_gives_them_up_as_well"],
    # Failures.
    "messages-lost": [
        "test_failures.py::test_a_step_of_ours_says_what_is_wrong",
        "test_failures.py::test_a_strangers_step_is_heard_as_well",
    ],
    "retry-forgotten": ["test_failures.py::test_retry_goes_on_where_it_failed"],
    "retry-runs-all": ["test_failures.py::test_retry_goes_on_where_it_failed"],
    # Kills.
    "checkpoints-lost": ["test_resuming.py::test_another_run_goes_on_where_a_stopped_one_was"],
    "pods-not-replaced": ["test_resuming.py::test_a_pod_that_is_lost_is_replaced"],
    # Schedules.
    "schedule-silent": ["test_schedules.py::test_it_fires_and_its_run_succeeds"],
    "never-paused": ["test_schedules.py::test_paused_it_fires_no_more"],
    "schedule-stays": ["test_schedules.py::test_removed_it_is_gone_and_kills_nothing"],
    # Placement.
    "placement-dropped": [
        "test_placement.py::test_nodes_and_taints",
        "test_placement.py::test_sizes_and_accelerators",
        "test_placement.py::test_variables_and_secrets",
        "test_placement.py::test_shared_memory",
        "test_placement.py::test_image",
    ],
    "every-node-fits": ["test_placement.py::test_the_command_says_why_it_waits"],
}
BEFORE = {
    "test_it_fires_and_its_run_succeeds": ["test_it_is_set_once"],
    "test_paused_it_fires_no_more": ["test_it_is_set_once"],
    "test_removed_it_is_gone_and_kills_nothing": ["test_it_is_set_once"],
    "test_where_nothing_is_new_the_rows_wait": ["test_the_first_run_makes_a_champion"],
}
"""Tests that others stand on, by the names of those."""


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_lie_is_noticed(mutation: str) -> None:
    wanted = MUTATIONS[mutation]
    names = {one.partition("::")[2] for one in wanted}
    chosen = [*names, *(before for name in names for before in BEFORE.get(name, []))]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"),
            *("-m", "cluster", "-k", " or ".join(chosen)),
            *sorted({str(HERE / one.partition("::")[0]) for one in wanted}),
        ],
        env=_lying(mutation),
        capture_output=True,
        text=True,
    )
    noticed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE))
    missed = [name for name in names if not any(one.startswith(name) for one in noticed)]
    assert not missed, (
        f"{missed} took it for the truth:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    )


def _lying(mutation: str) -> dict[str, str]:
    """Return the environment of a session of its own, on a double that lies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KUBESTILL_", "PYTEST_"))
    }
    return kept | {
        "KUBESTILL_TEST_DOUBLE": "1",
        "KUBESTILL_TEST_MUTATION": mutation,
        "KUBESTILL_TEST_PATIENCE": str(PATIENCE_S),
    }
