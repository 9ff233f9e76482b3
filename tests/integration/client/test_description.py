"""Every kind of request that the client makes, against Kubeflow's own description of its API.

Prism stands between the client and the small Kubeflow of the other tests. It knows the description
(`kfp_api_v2beta1.swagger.json`, of kubeflow/pipelines 2.17.0, Apache-2.0), turns away each request
that this does not allow, and each answer: so the small Kubeflow is held to it as well.
"""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulators import free_port
from kubeflow import Kubeflow, kubeflow, make_package
from kubestill.client import (
    Api,
    Connection,
    Schedule,
    ensure_version,
    follow_run,
    list_schedules,
    put_schedule,
    read_trigger,
    remove_schedule,
    set_paused,
    start_run,
)
from kubestill.client.doctor import examine
from kubestill.errors import ClusterError

DESCRIPTION = Path(__file__).with_name("kfp_api_v2beta1.swagger.json")
PRISM = shutil.which(os.environ.get("PRISM", "prism"))

pytestmark = pytest.mark.skipif(
    PRISM is None,
    reason="no Prism on PATH or in $PRISM: npm install --global @stoplight/prism-cli",
)


@pytest.fixture(scope="module")
def behind() -> Iterator[Kubeflow]:
    with kubeflow() as state:
        yield state


@pytest.fixture(scope="module")
def api(behind: Kubeflow) -> Iterator[Api]:
    """The client, and Prism between it and the small Kubeflow."""
    assert PRISM
    port = free_port()
    command = [PRISM, "proxy", str(DESCRIPTION), behind.host, f"--port={port}", "--errors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        # The description asks for a token on every request.
        api = Api(Connection(host=f"http://127.0.0.1:{port}", namespace="team", token="t"))
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(api.connection.host, timeout=5).close()
            except urllib.error.HTTPError:
                break  # it answers: there is nothing at /
            except OSError:
                time.sleep(0.1)
        yield api
        process.terminate()


def test_prism_turns_away_what_the_description_does_not_allow(api: Api) -> None:
    with pytest.raises(ClusterError) as refused:
        api.post("recurringruns", {"mode": "SOMETIMES"})
    assert refused.value.status == 422
    with pytest.raises(ClusterError) as refused:
        api.get("runs", page_size="many")
    assert refused.value.status == 422


def test_upload_run_schedule_and_doctor(api: Api, behind: Kubeflow) -> None:
    assert all(finding.ok for finding in examine(api) if finding.name != "retries")
    version = ensure_version(api, make_package("hello"))
    assert version.created
    assert not ensure_version(api, make_package("hello")).created

    run_id = start_run(
        api, version, {"times": 2}, name="once", experiment="e", pipeline_root="gs://b"
    )
    behind.runs[run_id]["state"] = "SUCCEEDED"
    assert follow_run(api, run_id, lambda run: None)["state"] == "SUCCEEDED"

    def schedule(cron: str, every: str, version_id: str) -> Schedule:
        return Schedule(
            name="often",
            pipeline_id=version.pipeline_id,
            version_id=version_id,
            arguments={"who": "you"},
            trigger=read_trigger(cron, every, time_zone="UTC", cluster_time_zone="UTC"),
            experiment="e",
            service_account="runner",
        )

    put_schedule(api, schedule("0 6 * * 1-5", "", version.version_id))
    put_schedule(api, schedule("", "6h", ""))
    set_paused(api, "often", True)
    set_paused(api, "often", False)
    assert len(list_schedules(api)) == 1
    assert remove_schedule(api, "often") == ()
    kinds = {request.split("/")[0] for request in behind.requests}
    assert kinds == {
        "GET healthz",
        "GET pipelines",
        "POST pipelines",
        "GET runs",
        "POST runs",
        "GET experiments",
        "POST experiments",
        "GET recurringruns",
        "POST recurringruns",
        "DELETE recurringruns",
    }
