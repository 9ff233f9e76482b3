"""A run with more nodes than Argo keeps as they are: its end is told, and what is not known."""

import pytest
from probes import Probes
from session import ENDED, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

STEPS = 8
PADDING = 45_000
"""Bytes of each command, of which Argo keeps four copies: 1.4 MB, compressed next to nothing.

Few steps, for each is three pods, and no longer: a pod takes two copies in one variable of 128 KiB.
"""


def test_a_run_whose_list_stands_still_is_followed_to_its_end(cluster: Cluster) -> None:
    done = cluster.run(Probes(cluster).crowd(steps=STEPS, padding=PADDING))
    assert done.code == 0, done.out
    assert cluster.state(done.run_id) == "SUCCEEDED"
    states = [node["state"] for node in cluster.nodes(done.run_id) if node.get("state")]
    assert any(state not in ENDED for state in states), "the list is complete: use more PADDING"
    assert "stands still" in done.out, done.out
