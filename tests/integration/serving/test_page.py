"""docs/serving.md does what it says: its blocks run, its commands and manifests parse."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from model_samples import make_model  # pyright: ignore[reportMissingImports]

import kubestill
from kubestill.cli.serve import serve
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.export import export_model
from kubestill.runtime.models.serve import add_serving_file
from served import serving

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the page's blocks run, with the model that it speaks of."""
    folder = tmp_path_factory.mktemp("page")
    columns = (
        Column(name="area", kind="numeric"),
        Column(name="colour", kind="categorical", categories=("blue", "red")),
        Column(name="sold", kind="categorical", role="target", categories=("no", "yes")),
    )
    frame = pd.DataFrame({"area": [1.0, 2.0, np.nan], "colour": ["red", "blue", None]})
    student = str(folder / "student")
    export_model(make_model(Schema(columns=columns, task="binary"), frame), student)
    add_serving_file(student, "onnx")
    return folder


@pytest.fixture
def port(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve that model, in its folder."""
    monkeypatch.chdir(folder)
    with serving("student", name="model") as address:
        yield re.findall(r":(\d+)/", address)[0]


def test_the_blocks_run_and_agree(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[dict[str, Any]] = []
    for code in blocks("python"):
        names: dict[str, Any] = {}
        exec(code.replace(":8080", f":{port}"), names)
        answers.append(names)
    program, http, arrow, onnx = answers
    expected = program["model"](program["frame"])[["p_no", "p_yes"]].to_numpy()
    found = np.array(http["probabilities"]["data"]).reshape(2, 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    table = pa.ipc.open_stream(arrow["answer"].content).read_all()
    np.testing.assert_allclose(table.select(["p_no", "p_yes"]).to_pandas(), expected, atol=1e-6)
    np.testing.assert_allclose(onnx["probabilities"], expected, atol=1e-5)
    assert "['no', 'yes']" in capsys.readouterr().out
    request = json.loads(Path("student/request.json").read_text())
    row = {one["name"]: one["data"][0] for one in request["inputs"]}
    assert kubestill.load_model("student")(row)["prediction"] in ("no", "yes")


def test_the_shell_s_requests_are_answered(port: str) -> None:
    (asking,) = [block for block in blocks("sh") if "curl" in block]
    done = subprocess.run(
        ["sh", "-c", asking.replace(":8080", f":{port}")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    about, end = json.JSONDecoder().raw_decode(done.stdout)
    answer, _ = json.JSONDecoder().raw_decode(done.stdout[end:].strip())
    assert [one["name"] for one in about["inputs"]] == ["area", "colour"]
    assert [one["shape"] for one in answer["outputs"]] == [[2], [2, 2]]


def test_commands_and_manifests_name_options_that_exist() -> None:
    lines = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()[:1]]
    commands = [words[2:] for words in lines if words[:2] == ["kubestill", "serve"]]
    runtime, service = yaml.safe_load_all(blocks("yaml")[0])
    (container,) = runtime["spec"]["containers"]
    assert container["command"] == ["kubestill", "serve"]
    for words in (*commands, container["args"]):
        serve.make_context("serve", list(words))
    port = serve.make_context("serve", container["args"]).params["port"]
    assert container["ports"][0]["containerPort"] == port
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": port}
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    assert len(commands) == 2
