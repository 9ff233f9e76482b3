"""What a run on this machine leaves behind about itself, and what `kubestill runs` makes of it."""

# Kubeflow turns calls into tasks.
# pyright: reportArgumentType=false, reportCallIssue=false

import json
import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner
from kfp import compiler, dsl

from kubestill.cli.runs import runs
from kubestill.errors import KubestillError
from kubestill.local import find_record, list_records, read_scores, run_pipeline

IMAGE = "kubestill:test"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report_on(text: str, report: dsl.Output[dsl.HTML], model: dsl.Output[dsl.Model]):
    import os

    with open(report.path, "w") as file:
        file.write(f"<p>{text}</p>")
    os.makedirs(model.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def wait_or_fail(seconds: float):
    import time

    time.sleep(seconds)
    raise ValueError("waited long enough")


@dsl.pipeline(name="short")
def short(text: str = "a", registry: str = ""):
    report_on(text=text)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def keep_record(model: dsl.Input[dsl.Model], record: dsl.Output[dsl.Artifact]):
    with open(record.path, "w") as file:
        file.write("no JSON")


@dsl.pipeline(name="strange")
def strange():
    keep_record(model=report_on(text="a").outputs["model"])


@dsl.pipeline(name="waiting")
def waiting(seconds: float = 0.0):
    wait_or_fail(seconds=seconds)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one that went well, one that failed."""
    root = tmp_path_factory.mktemp("runs")
    secret = "s3://user:hunter2@host/bucket"
    run_pipeline(short.pipeline_spec, {"text": secret}, root=str(root / "short"))
    run_pipeline(waiting.pipeline_spec, {}, root=str(root / "waiting"))
    return root


def ask(*words: str, answer: str = "") -> str:
    done = CliRunner().invoke(runs, list(words), input=answer)
    return done.output + (str(done.exception) if done.exception else "")


def test_runs_are_listed_with_state_and_folder(root):
    told = ask("ls", "--local", "--output", str(root))
    failed, well = told.splitlines()[1:]
    assert {"waiting", "failed"} <= set(failed.split())
    assert {"short", "succeeded"} <= set(well.split())
    for one in list_records(str(root)):
        assert one.id[:8] in told
        assert one.folder.endswith(one.id[:8])


def test_a_run_shows_what_it_made_and_keeps_no_password(root):
    one = next(one for one in list_records(str(root)) if one.pipeline == "short")
    told = ask("show", one.id[:8], "--local", "--output", str(root))
    assert "report-on" in told
    for path in (*one.reports.values(), *one.models.values()):
        assert os.path.exists(os.path.join(one.folder, path))
        assert path in told
    assert "-p text=s3://" in told
    assert "hunter2" not in told + (Path(one.folder) / "run.json").read_text()


def test_a_failed_run_shows_why(root):
    one = next(one for one in list_records(str(root)) if one.state == "failed")
    told = ask("show", one.folder, "--local", "--output", str(root))
    assert "wait-or-fail failed: ValueError: waited long enough" in told
    log = told.rpartition("Its whole output: ")[2].strip()
    assert "waited long enough" in Path(log).read_text()
    why = ask("why", one.folder, "--local", "--output", str(root))
    assert why.strip() == told[told.index("wait-or-fail failed") :].strip()
    well = next(one for one in list_records(str(root)) if one.state == "succeeded")
    assert "it did not fail" in ask("why", well.id, "--local", "--output", str(root))


def test_the_page_of_a_run_links_what_it_made(root, monkeypatch):
    shown = root / "shown"
    monkeypatch.setenv("BROWSER", f"sh -c 'echo %s >{shown}'")
    monkeypatch.setattr(webbrowser, "_tryorder", None)  # it reads the variable once
    for one in list_records(str(root)):
        page = (Path(one.folder) / "index.html").read_text()
        links = set(re.findall(r'href="([^"]+)"', page))
        assert links == {*one.reports.values(), *one.models.values(), *(s.log for s in one.steps)}
        assert all((Path(one.folder) / link).exists() for link in links)
        assert f"run {Path(one.folder).name}" in page
        assert "hunter2" not in page
        assert one.cause in page
        told = ask("open", one.id, "--local", "--output", str(root)).strip()
        assert told == (Path(one.folder) / "index.html").as_uri()
        assert shown.read_text().strip() == told


def test_an_output_of_somebody_else_called_record_is_no_evaluation(tmp_path):
    ended = run_pipeline(strange.pipeline_spec, {}, root=str(tmp_path))
    assert (ended.failed, ended.error) == (None, "")
    assert list(ended.models) == ["model"]
    assert read_scores(ended) is None


def test_a_killed_run_is_interrupted_and_a_running_one_stays(tmp_path):
    compiler.Compiler().compile(waiting, str(tmp_path / "waiting.yaml"))
    command = ["run", str(tmp_path / "waiting.yaml"), "-p", "seconds=60", "--output", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "kubestill", *command], stdout=subprocess.DEVNULL
    ) as process:
        while not list_records(str(tmp_path)):
            assert process.poll() is None
            time.sleep(0.05)
        (one,) = list_records(str(tmp_path))
        assert one.shown_state == "running"
        refused = ask("rm", one.id, "--output", str(tmp_path), "--yes")
        assert f"nothing is deleted: {one.id[:8]} is running" in refused
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    # Its steps hold the lock of the run's folder as well; the kernel ends them with it.
    while (one := list_records(str(tmp_path))[0]).shown_state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (one.state, one.shown_state, one.seconds) == ("running", "interrupted", None)
    assert "its process was killed" in ask("show", one.id, "--local", "--output", str(tmp_path))


def test_an_unknown_run_is_answered_with_those_there_are(root):
    with pytest.raises(KubestillError, match=r"no run 'nope' below .*known: [0-9a-f]{8}"):
        find_record(str(root), "nope")


def test_the_beginning_of_two_ids_is_refused(tmp_path):
    for name in ("abc1", "abc2"):
        (tmp_path / name).mkdir()
        form = {"format": "kubestill/run/1", "id": name, "pipeline": "p", "steps": []}
        form["started"] = "2026-01-01T00:00:00+00:00"
        (tmp_path / name / "run.json").write_text(json.dumps(form))
    with pytest.raises(KubestillError, match="'abc' is the beginning of several ids: abc"):
        find_record(str(tmp_path), "abc")
    assert find_record(str(tmp_path), "abc2").id == "abc2"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"format": "kubestill/run/2"}', '{"format": "kubestill/run/1", "steps": 3}']
    + ['{"format": "kubestill/run/1", "steps": [], "id": "a", "pipeline": "b", "started": "c"}'],
)
def test_what_is_no_record_is_left_out(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert list_records(str(tmp_path)) == []


def test_removing_asks_first_and_never_takes_what_a_registry_names(tmp_path):
    registry = tmp_path / "registry"
    registry.mkdir()
    arguments = {"registry": str(registry)}
    run_pipeline(short.pipeline_spec, arguments, root=str(tmp_path / "runs"))
    (one,) = list_records(str(tmp_path))
    words = ("rm", one.id[:8], "--output", str(tmp_path))
    (registry / "registry.json").write_text(json.dumps({"model": f"{one.folder}/model"}))
    assert "holds what its registry names" in ask(*words, "--yes")
    (registry / "registry.json").write_text("{}")
    assert "Aborted" in ask(*words, answer="n\n")
    assert os.path.isdir(one.folder)
    ask(*words, answer="y\n")
    assert not os.path.exists(one.folder)
    assert registry.is_dir()
