"""A solver becomes a network with a certificate, on the cluster."""

import json
from collections import Counter

import pytest
from session import Cluster, Done

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

SMALL = {
    "system": "heat",
    "rows": 4096,
    "shards": 1,
    "network_args": {"hidden": [24, 24], "activation": "tanh"},
    "steps": 400,
    "samples": 2000,
    "tolerance": 0.5,
}


@pytest.fixture(scope="module")
def done(cluster: Cluster) -> Done:
    """What the command said of a run that it followed."""
    return cluster.run("surrogate", checkpoint_uri=cluster.checkpoints, **SMALL)


def test_it_succeeds_and_the_command_ends_with_the_verdict(cluster: Cluster, done: Done) -> None:
    assert done.code == 0, done.out
    assert cluster.state(done.run_id) == "SUCCEEDED"
    assert "certified" in done.out
    tasks = cluster.tasks(done.run_id)
    assert tasks["certify-surrogate"] == tasks["train-student"] == Counter(SUCCEEDED=1)


def test_the_certificate_in_the_store_rests_on_every_row(stored: Cluster, done: Done) -> None:
    kept = stored.outputs("surrogate", done.run_id, "certify-surrogate")
    key = next(key for name, key in kept.items() if name.endswith("certificate.json"))
    certificate = json.loads(stored.store().get(key))
    assert certificate["verdict"] == "certified: sampled"
    assert certificate["about"]["system"] == "heat"
    assert certificate["errors"]["data"]["rows"] == SMALL["rows"]
    assert {one["status"] for one in certificate["conditions"]} == {"shown"}
