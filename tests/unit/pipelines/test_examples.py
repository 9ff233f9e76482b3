"""The examples of the docs compile, and are what the docs say."""

import runpy
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def test_a_surrogate_is_refined_for_as_many_rounds_as_the_loop_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(EXAMPLES / "refined_surrogate.py"), run_name="__main__")
    spec = yaml.safe_load((tmp_path / "refined_surrogate.yaml").read_text())
    tasks = spec["root"]["dag"]["tasks"]
    assert sum(name.startswith("train-student") for name in tasks) == found["ROUNDS"] + 1
    assert "model" in tasks["generate-synthetic-2"]["inputs"]["artifacts"]
