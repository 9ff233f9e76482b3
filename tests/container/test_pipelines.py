"""Our three pipelines, every step in a container, checkpoints and registry on the emulator."""

import hashlib
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from google.cloud import storage
from kfp import dsl
from pods import DOCKER

import kubestill.components
from kubestill.local import Containers, run_pipeline
from kubestill.runtime.retraining import open_registry

# Kubeflow injects outputs, which signatures do not say.
ours: Any = kubestill.components

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

DISTILLATION: dict[str, Any] = {
    "teacher_args": "{hidden: [128, 128], dropout: 0.2}",
    "teacher_rows": 1000,
    "teacher_steps": 600,
    "teacher_settings": "{checkpoints: {recovery_seconds: 0.05}}",
    "rows": 2000,
    "student_args": "{hidden: [32]}",
    "student_steps": 200,
}
SURROGATE = {
    "rows": 9000,
    "network_args": "{hidden: [24, 24], activation: tanh}",
    "steps": 400,
    "samples": 2000,
    "tolerance": 0.5,
}
RETRAINING = {
    "timestamp": "t",
    "target": "late",
    "features": "[x0, x1]",
    "network_args": "{hidden: [16]}",
    "epochs": 8,
    "learning_rate": 0.01,
    "finetune_learning_rate": 0.01,
    "strict": "false",
    "evaluation_settings": "{resamples: 200}",
}


def docker_arguments(gcs: Any) -> list[str]:
    # Small networks gain nothing by a second thread, and lose much by waiting for it.
    environment = {"OMP_NUM_THREADS": "1", **gcs.env}
    return ["--network=host", *(f"--env={name}={value}" for name, value in environment.items())]


@contextmanager
def running(pipeline: str, folder: Path, gcs: Any, *options: str, **given: Any):
    """Start `kubestill run --runner docker`; what it prints is read line by line."""
    given = {"checkpoint_uri": f"{gcs.uri}/checkpoints", **given}
    command = [sys.executable, "-m", "kubestill", "run", pipeline, f"--output={folder}", *options]
    command += ["--runner=docker", *(f"--docker-arg={part}" for part in docker_arguments(gcs))]
    command += [f"-p{name}={value}" for name, value in given.items()]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def run(pipeline: str, folder: Path, gcs: Any, *options: str, **given: Any) -> str:
    """Run it to its end; returns what it printed."""
    with running(pipeline, folder, gcs, *options, **given) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def steps(printed: str) -> set[str]:
    return set(re.findall(r"✓ (\S+)", printed))


def teacher(folder: Path) -> str:
    (weights,) = folder.glob("*/train-teacher/*/model/model.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@dsl.pipeline(name="undisturbed")
def undisturbed(checkpoint_uri: str):
    """The steps of `distillation` that its teacher comes from."""
    data = ours.import_dataset(source="digits", validation_fraction=0.15, holdout_fraction=0.2)
    rows = ours.generate_synthetic(
        original=data.outputs["dataset"], method="jitter", rows=DISTILLATION["teacher_rows"]
    )
    ours.train_teacher(
        dataset=rows.outputs["dataset"],
        validation=data.outputs["validation"],
        network_args=yaml.safe_load(DISTILLATION["teacher_args"]),
        steps=DISTILLATION["teacher_steps"],
        settings=yaml.safe_load(DISTILLATION["teacher_settings"]),
        checkpoint_uri=checkpoint_uri,
        experiment="teacher",
    )


def test_distillation_ends_the_same_though_its_teacher_is_killed(tmp_path: Path, gcs: Any) -> None:
    lines: list[str] = []
    killed = False
    with running("distillation", tmp_path, gcs, "-v", **DISTILLATION) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            # A milestone, which is saved. No other step runs beside the teacher.
            if not killed and "train-teacher: " in line and "log_loss" in line:
                found = [DOCKER, "ps", "--quiet", "--filter=name=kubestill-"]
                mine = subprocess.check_output(found, text=True).split()
                subprocess.run([DOCKER, "kill", *mine], check=True, capture_output=True)
                killed = True
    printed = "".join(lines)
    assert process.returncode == 0, printed
    assert killed
    assert "train-teacher: resuming from step" in printed
    assert {"label-with-teacher[1]", "train-control", "continuous-eval"} <= steps(printed)

    calm = run_pipeline(
        undisturbed.pipeline_spec,
        {"checkpoint_uri": f"{gcs.uri}/calm"},
        root=str(tmp_path / "calm"),
        containers=Containers(arguments=tuple(docker_arguments(gcs))),
    )
    assert (calm.failed, calm.error) == (None, "")
    assert teacher(tmp_path) == teacher(tmp_path / "calm")


def test_a_surrogate_is_certified(tmp_path: Path, gcs: Any) -> None:
    printed = run("surrogate", tmp_path, gcs, **SURROGATE)
    assert {"generate-synthetic", "train-student", "certify-surrogate"} <= steps(printed)
    (file,) = tmp_path.glob("surrogate-*/certify-surrogate/*/certificate/certificate.json")
    assert json.loads(file.read_text())["verdict"] == "certified: sampled"


def test_a_decayed_champion_is_replaced(tmp_path: Path, gcs: Any) -> None:
    """Rows and registry lie in the bucket; between the two months a column turns around."""
    given = {**RETRAINING, "source": f"{gcs.uri}/rows", "registry": f"{gcs.uri}/registry"}
    upload(month(1, weight=1.0), gcs)
    first = run("continuous-retraining", tmp_path, gcs, "--as-of=2013-02-01", **given)
    assert {"train-first", "promote-first"} <= steps(first)
    assert "**promoted**" in first
    upload(month(2, weight=-0.6), gcs)
    second = run("continuous-retraining", tmp_path, gcs, "--as-of=2013-03-01", **given)
    assert {"judge-champion", "finetune-fresh", "judge-challenger"} <= steps(second)
    assert "**promoted**" in second
    champion = open_registry(f"{gcs.uri}/registry").read().champion
    assert champion
    assert champion.version == 2


def month(number: int, *, weight: float) -> pd.DataFrame:
    random = np.random.default_rng(number)
    x = random.normal(size=(1500, 2))
    late = random.random(1500) < 1 / (1 + np.exp(-2.0 * x[:, 0] - weight * x[:, 1]))
    times = pd.date_range(f"2013-{number:02d}-01", periods=1500, freq="20min")
    return pd.DataFrame(
        {"t": times, "x0": x[:, 0], "x1": x[:, 1], "late": np.where(late, "y", "n")}
    )


def upload(rows: pd.DataFrame, gcs: Any) -> None:
    bucket = storage.Client(project="test").bucket(gcs.bucket)
    blob = bucket.blob(f"rows/{rows['t'].iloc[0]:%Y-%m}.parquet")
    blob.upload_from_string(rows.to_parquet())
