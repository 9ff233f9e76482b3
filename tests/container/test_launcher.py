"""Compiled components as Kubeflow's launcher runs them: `gs://` artifacts, retries, preemption."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.cloud import storage
from pods import Attempt, Task, drive

from emulators import GcsEmulator

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

TEACHER: dict[str, Any] = {
    "network_args": {"hidden": [128, 128], "dropout": 0.2},
    "steps": 600,
    "settings": {"checkpoints": {"recovery_seconds": 0.05}},
}
SAVED = "log_loss"
"""In the progress line of a milestone, which is saved; the first line of all is printed earlier."""


class Cluster:
    """A bucket, and tasks whose artifacts go there."""

    def __init__(self, emulator: GcsEmulator, scratch: Path):
        self._emulator = emulator
        self._scratch = scratch
        self.bucket = f"kubeflow-{uuid.uuid4().hex[:12]}"
        emulator.create_bucket(self.bucket)
        self.root = f"gs://{self.bucket}/v2/artifacts"

    def task(self, component: str, **given: Any) -> Task:
        environment = {"STORAGE_EMULATOR_HOST": self._emulator.host, "OMP_NUM_THREADS": "1"}
        return drive(
            component, root=self.root, scratch=self._scratch, environment=environment, **given
        )

    def objects(self, uri: str) -> dict[str, bytes]:
        """Everything below a folder of the bucket: names without it, and contents."""
        prefix = uri.removeprefix(f"gs://{self.bucket}/") + "/"
        client = storage.Client(project="test")
        found = client.list_blobs(self.bucket, prefix=prefix)
        return {blob.name.removeprefix(prefix): blob.download_as_bytes() for blob in found}

    def weights(self, attempt: Attempt) -> str:
        """Digest of the model that an attempt has uploaded."""
        objects = self.objects(attempt.artifact("model")["uri"])
        return hashlib.sha256(objects["model.safetensors"]).hexdigest()


@pytest.fixture(scope="module")
def cluster(gcs_server: GcsEmulator, tmp_path_factory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", gcs_server.host)
        yield Cluster(gcs_server, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def digits(cluster: Cluster) -> Attempt:
    done = cluster.task("import_dataset", source="digits").attempt()
    assert done.code == 0, done.log
    return done


@pytest.fixture(scope="module")
def teacher(cluster: Cluster, digits: Attempt) -> Callable[[str], Task]:
    """A teacher's task that keeps its checkpoints at a given place."""
    inputs = {name: digits.artifact(name) for name in ("dataset", "validation")}

    def make(checkpoint_uri: str) -> Task:
        return cluster.task(
            "train_teacher", artifacts=inputs, checkpoint_uri=checkpoint_uri, **TEACHER
        )

    return make


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, teacher) -> Attempt:
    done = teacher(f"gs://{cluster.bucket}/calm").attempt()
    assert done.code == 0, done.log
    return done


def test_outputs_are_uploaded_after_success_with_what_the_step_says_of_them(cluster, digits):
    dataset = digits.artifact("dataset")
    assert dataset["uri"].startswith(cluster.root)
    assert dataset["metadata"]["kind"] == "dataset"
    assert dataset["metadata"]["rows"] > 1000
    assert "dataset.json" in cluster.objects(dataset["uri"])
    assert digits.published["parameters"]["dataset_uri"] == dataset["uri"]


@pytest.mark.parametrize("root", ["gs://{bucket}/killed", ""], ids=["own-root", "beside-ledger"])
def test_a_killed_teacher_resumes_in_a_fresh_container(cluster, teacher, undisturbed, root):
    task = teacher(root.format(bucket=cluster.bucket))
    killed = task.attempt(kill_at=SAVED)
    assert killed.code == 137
    assert not killed.published
    assert not any(name.startswith("model") for name in cluster.objects(task.folder))
    retried = task.attempt()
    assert retried.code == 0, retried.log
    assert "resuming from step" in retried.log
    assert cluster.weights(retried) == cluster.weights(undisturbed)


def test_the_next_step_reads_models_and_checkpoints_by_their_uris(cluster, digits, undisturbed):
    ledger = undisturbed.artifact("ledger")
    chosen = cluster.task("select_checkpoint", artifacts={"ledger": ledger}).attempt()
    assert chosen.code == 0, chosen.log
    assert chosen.published["parameters"]["checkpoint_uri"].startswith(f"gs://{cluster.bucket}/")
    inputs = {"model": chosen.artifact("model"), "dataset": digits.artifact("holdout")}
    judged = cluster.task("continuous_eval", artifacts=inputs).attempt()
    assert judged.code == 0, judged.log
    assert judged.artifact("metrics")["metadata"]["accuracy"] > 0.9


def test_a_step_that_fails_leaves_no_output(cluster, digits):
    """Also not the report that it had written: Kubeflow uploads nothing after a failure."""
    task = cluster.task(
        "overfit_batch",
        artifacts={"dataset": digits.artifact("dataset")},
        network_args={"hidden": [32]},
        steps=200,
        learning_rate=1e-9,
        strict=True,
    )
    failed = task.attempt()
    assert failed.code == 1
    assert "Refused" in failed.log
    assert not failed.published
    assert cluster.objects(task.folder) == {}


def test_what_cannot_work_is_said_before_anything_is_trained(cluster, teacher):
    failed = teacher("gs://no-such-bucket/checkpoints").attempt()
    assert failed.code == 1
    assert "checkpoint_uri = 'gs://no-such-bucket/checkpoints'" in failed.log
    assert SAVED not in failed.log
