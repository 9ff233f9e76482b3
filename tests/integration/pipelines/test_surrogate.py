"""From a solver to a certificate, through the real local runner, with small settings."""

import json
import re
from pathlib import Path

import pytest

SMALL = {
    "system": "heat",
    "rows": "9000",
    "network_args": "{hidden: [24, 24], activation: tanh}",
    "steps": "400",
    "samples": "2000",
    "tolerance": "0.5",
}


def arguments(output: Path, **overrides: str) -> list[str]:
    given = [f"-p{name}={value}" for name, value in {**SMALL, **overrides}.items()]
    return ["run", "surrogate", "--output", str(output), *given]


@pytest.fixture(scope="module")
def surrogate(kubestill, tmp_path_factory) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp("surrogate")
    done = kubestill(*arguments(output))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, output


def test_every_task_ran_and_the_last_certified(surrogate):
    stdout, output = surrogate
    done = re.findall(r"✓ (\S+)", stdout)
    steps = ["generate-synthetic", "overfit-batch", "plan-shards", "train-student"]
    assert sorted(done) == sorted([*steps, "certify-surrogate", "gather-shards"])
    (file,) = output.glob("surrogate-*/certify-surrogate/*/certificate/certificate.json")
    certificate = json.loads(file.read_text())
    assert certificate["verdict"] == "certified: sampled"
    assert certificate["about"]["system"] == "heat"
    assert certificate["errors"]["data"]["rows"] == 9000
    assert {c["status"] for c in certificate["conditions"]} == {"shown"}


def test_the_report_is_one_self_contained_page(surrogate):
    stdout, output = surrogate
    assert "# certify-surrogate: certified" in stdout
    (report,) = output.glob("surrogate-*/reports/certify-surrogate.html")
    html = report.read_text()
    assert html.count("<svg") >= 5
    assert not re.search(r"""(src|href)=["']https?://""", html)


def test_a_network_that_cannot_learn_stops_before_the_training(kubestill, tmp_path):
    done = kubestill(*arguments(tmp_path, learning_rate="1e-9", rows="600", shards="1"))
    assert done.returncode == 1
    assert "overfit-batch: fail. learning-rate" in done.stderr
    assert "▸ train-student" not in done.stdout
    assert "report: " in done.stdout
    assert "overfit-batch.html" in done.stdout
