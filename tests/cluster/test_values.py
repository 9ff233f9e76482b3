"""What is given arrives: parameters of every kind, artifacts and their metadata, or nothing."""

import json
from collections import Counter
from typing import Any

import pytest
from probes import Probes
from session import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

GIVEN: dict[str, Any] = {
    "whole": 3,
    "real": 0.25,
    "yes": True,
    "no": False,
    "text": "plain: [text], {not: yaml}",
    "blank": "",
    "table": {"layers": 3, "rate": 0.5, "deep": {"names": ["a", "b"], "none": {}}, "on": True},
    "empty_table": {},
    "rows": [1, 2.5, "three", [4], {"five": 5}],
    "empty_rows": [],
}


def test_parameters_arrive_as_they_were_given(cluster: Cluster) -> None:
    expected = json.dumps(list(GIVEN.values()), sort_keys=True)
    done = cluster.run(Probes(cluster).values(), **GIVEN, expected=expected)
    assert done.code == 0, done.out
    run = cluster.get(f"runs/{done.run_id}")
    assert run["state"] == "SUCCEEDED"
    assert run["runtime_config"]["parameters"] == GIVEN | {"expected": expected}


def test_parameters_that_nobody_gives_arrive_as_their_defaults(cluster: Cluster) -> None:
    expected = json.dumps(list(GIVEN.values()), sort_keys=True)
    left_out = ("blank", "empty_table", "empty_rows")
    given = {name: value for name, value in GIVEN.items() if name not in left_out}
    done = cluster.run(Probes(cluster).values(), **given, expected=expected)
    assert done.code == 0, done.out
    assert cluster.state(done.run_id) == "SUCCEEDED"


def test_an_optional_artifact_arrives_where_it_is_given_and_nowhere_else(cluster: Cluster) -> None:
    done = cluster.run(Probes(cluster).optional())
    assert done.code == 0, done.out
    assert cluster.state(done.run_id) == "SUCCEEDED"
    tasks = cluster.tasks(done.run_id)
    assert tasks["consume"] == tasks["consume-2"] == Counter(SUCCEEDED=1)
