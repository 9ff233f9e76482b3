"""Which commands say that a pipeline gets too large: through the real command line."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from kubestill.assets import compile_yaml, find_assets
from kubestill.cli import main

NOBODY = "http://127.0.0.1:9"
"""No Kubeflow listens here: what is said is said before anything is sent."""


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubestill.client.api.PAUSE_S", 0.0)


@pytest.fixture
def resources(tmp_path: Path) -> str:
    """Variables for every task, of which Argo keeps eight copies each."""
    path = tmp_path / "resources.yaml"
    env = {f"VARIABLE_{number}": "x" * 500 for number in range(20)}
    path.write_text(yaml.safe_dump({"env": env}))
    return str(path)


def test_compile_warns_of_the_pipelines_that_get_large(tmp_path, resources):
    done = command("compile", "--resources", resources, "--output", str(tmp_path / "out"))
    assert done.exit_code == 0
    assert "warning: distillation: workflow size:" in done.stderr
    assert "Kubeflow's list of tasks stands still" in done.stderr
    assert (tmp_path / "out" / "pipelines" / "distillation.yaml").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("upload", "{}"), id="upload"),
        pytest.param(("run", "{}", "--remote", "-pshards=100"), id="run"),
        pytest.param(("schedule", "set", "{}", "--every", "1h", "-pshards=100"), id="schedule"),
    ],
)
def test_a_command_warns_before_it_sends_anything(tmp_path, resources, arguments):
    (asset,) = (one for one in find_assets() if one.name == "distillation")
    theirs = tmp_path / "theirs.yaml"
    large = arguments[0] == "upload"
    theirs.write_text(compile_yaml(asset, resources=resources if large else ""))
    given = [one.format(theirs) for one in arguments]
    done = command(*given, "--host", NOBODY)
    assert done.exit_code == 1
    assert "warning: distillation: workflow size:" in done.stderr
    if not large:  # the run's own parameters count
        assert "with 100 iterations of its loops" in done.stderr
