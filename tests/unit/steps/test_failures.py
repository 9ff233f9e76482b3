"""Records of failed steps: where they lie, what they say, and what must never get into them."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from kubestill.errors import InvalidInput, Problem
from kubestill.runtime.steps.failures import (
    RUN_ROOT_VARIABLE,
    Failure,
    clear_failure,
    find_run_root,
    read_failures,
    record_failure,
    redact,
)
from kubestill.runtime.stores import open_store

DRIVEN = "ac70d8fb-4928-461c-b0de-54627648d684"


def executor_input(root: str, task: str = "train-teacher-2", which: str = DRIVEN) -> dict[str, Any]:
    """As the launcher hands it over: see the recordings."""
    place = f"{root}/{task}/{which}"
    logs = {"artifacts": [{"name": "executor-logs", "uri": f"{place}/executor-logs-0"}]}
    model = {"artifacts": [{"name": "model", "uri": f"{place}/model"}]}
    return {
        "inputs": {},
        "outputs": {
            "artifacts": {"executor-logs": logs, "model": model},
            "outputFile": f"/minio/mlpipeline/v2/{task}/{which}/output_metadata.json",
        },
    }


def left(given: Any, error: Exception, *, component: str = "x", **more: Any) -> Failure | None:
    """What a step leaves that ends with this error."""
    said = {"error": type(error).__name__, "message": str(error)}
    return record_failure(given, component=component, **said, **more)


@pytest.fixture
def root() -> str:
    return f"memory://{uuid.uuid4().hex}/v2/artifacts/distillation/{uuid.uuid4()}"


def test_a_record_says_who_failed_why_and_whether_to_try_again(root: str) -> None:
    error = InvalidInput([Problem("epochs", -1, "use more than 0")])
    given = executor_input(root)
    written = left(given, error, component="train_teacher", attempt=2, curable=True)
    (read,) = read_failures(root)
    assert read == written
    assert (read.task, read.component, read.attempt) == ("train-teacher-2", "train_teacher", 2)
    assert read.curable
    assert read.describe() == (
        "train-teacher-2: InvalidInput: 1 problem with the input:\n  - epochs = -1: use more than 0"
    )


def test_the_last_attempt_of_a_step_decides(root: str) -> None:
    given = executor_input(root)
    for number in (1, 2):
        left(given, OSError(f"number {number}"), attempt=number)
    assert [failure.message for failure in read_failures(root)] == ["number 2"]


def test_iterations_of_a_loop_have_a_record_each(root: str) -> None:
    for number in range(3):
        given = executor_input(root, "label-with-teacher", str(uuid.uuid4()))
        left(given, OSError(f"number {number}"), component="label_with_teacher")
    found = read_failures(root)
    assert [failure.message for failure in found] == ["number 0", "number 1", "number 2"]


def test_a_step_that_went_well_in_the_end_leaves_nothing(root: str) -> None:
    """Else a later step that dies without a word would have its failure put down to this one."""
    left(executor_input(root), OSError("once"))
    left(executor_input(root, "other"), OSError("stays"))
    clear_failure(executor_input(root))
    clear_failure(executor_input(root))
    assert [failure.task for failure in read_failures(root)] == ["other"]


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        (f"minio://b/v2/artifacts/p/RUN/record-outcome/{DRIVEN}/summary", "minio://b/v2/artifacts/p/RUN"),
        (f"gs://b/p/RUN/t/{DRIVEN}/model", "gs://b/p/RUN"),
        (f"s3://b/p/RUN/t/{DRIVEN}/model?region=eu-west-1", "s3://b/p/RUN"),
        ("gs://b/models/mine", ""),
        ("/tmp/outputs/run/task/summary", ""),
        (f"t/{DRIVEN}/m", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_root_of_a_run_is_told_from_an_output(uri: str, root: str) -> None:
    assert find_run_root(uri) == root


def test_a_local_runner_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"{tmp_path}/distillation-2026"
    monkeypatch.setenv(RUN_ROOT_VARIABLE, f"{root}/")
    given = {
        "outputs": {
            "artifacts": {},
            "outputFile": f"{root}/loop-1/label-with-teacher/executor_output.json",
        }
    }
    left(given, KeyError("x"), component="label_with_teacher")
    (failure,) = read_failures(root)
    assert failure.task == "label-with-teacher"
    assert find_run_root(f"{root}/record-outcome/summary") == root
    assert find_run_root(f"{tmp_path}/distillation-2026-2/record-outcome/summary") == ""


def test_a_step_without_artifacts_is_found_by_its_output_file(tmp_path: Path) -> None:
    given = {"outputs": {"outputFile": f"{tmp_path}/p/RUN/plan/{DRIVEN}/output_metadata.json"}}
    assert left(given, OSError("no"), component="plan")
    assert [failure.task for failure in read_failures(f"{tmp_path}/p/RUN")] == ["plan"]


def test_a_run_without_failures_has_none(root: str, tmp_path: Path) -> None:
    assert read_failures(root) == []
    assert read_failures(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"outputs": {"artifacts": {"m": {"artifacts": [{}]}}}},
        {"outputs": {"artifacts": None, "outputFile": None}},
        {"outputs": {"outputFile": f"/proc/p/RUN/t/{DRIVEN}/output_metadata.json"}},
        {"outputs": {"outputFile": f"ftp://b/p/RUN/t/{DRIVEN}/output_metadata.json"}},
        [],
    ],
    ids=["nothing", "no URI", "null", "nobody may write", "no such store", "no object"],
)
def test_what_cannot_be_recorded_never_fails_the_step(given: Any) -> None:
    assert left(given, OSError("the step's own")) is None
    clear_failure(given)


def test_the_log_says_why_nothing_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    left(executor_input("/proc/p/RUN"), OSError("own"))
    assert "could not be recorded for later: /proc" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="bytes"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"[" * 50_000, id="deep"),
        pytest.param(b'{"message": "whose?"}', id="nobody's"),
        pytest.param(b'{"task": 3}', id="number"),
        pytest.param(b'{"task": "t"}' + b" " * 70_000, id="large"),
    ],
)
def test_strange_records_are_passed_over(root: str, content: bytes) -> None:
    open_store(root).put("failures/strange.json", content)
    left(executor_input(root), OSError("mine"))
    assert [failure.message for failure in read_failures(root)] == ["mine"]


def test_a_record_of_another_version_is_read_as_far_as_it_goes(root: str) -> None:
    form = {"task": "t", "attempt": "two", "message": "m", "new": {"a": 1}}
    open_store(root).put("failures/t-1.json", json.dumps(form).encode())
    assert read_failures(root) == [Failure(task="t", message="m")]


def test_a_store_that_cannot_be_read_is_reported() -> None:
    with pytest.raises(InvalidInput, match="ftp"):
        read_failures("ftp://host/run")


def test_long_messages_keep_their_beginning_and_end(root: str) -> None:
    left(executor_input(root), OSError("BEGIN" + "x" * 100_000 + "END"))
    (failure,) = read_failures(root)
    assert failure.message.startswith("BEGIN")
    assert failure.message.endswith("END")
    assert len(failure.message) < 4100


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://user:SECRET@host/b: no", "s3://***@host/b: no"),
        ("s3://user:SE/CR@ET@host/b: no", "s3://***@host/b: no"),
        ("'https://SECRET@host/x'", "'https://***@host/x'"),
        ("https://h/x?X-Amz-Signature=SECRET&part=1", "https://h/x?X-Amz-Signature=***&part=1"),
        ("Authorization: Bearer SECRETSECRET", "Authorization: Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=SECRET", "AWS_SECRET_ACCESS_KEY=***"),
        ('{"password": "SECRET", "epochs": 3}', '{"password": "***", "epochs": 3}'),
        ("http://host:8080/a/@scope/pkg", "http://host:8080/a/@scope/pkg"),
        ("mail a@b.c; tokens per second: fine", "mail a@b.c; tokens per second: fine"),
        ("gs://bucket/prefix/model.json is gone", "gs://bucket/prefix/model.json is gone"),
    ],
)
def test_credentials_are_left_out(root: str, text: str, clean: str) -> None:
    assert redact(text) == clean
    left(executor_input(root), OSError(text))
    assert "SECRET@" not in read_failures(root)[0].message
    assert read_failures(root)[0].message == clean


@pytest.mark.parametrize(
    "text",
    [
        "SECRET_KEY=hunter2abc",
        "secret_key: hunter2abc",
        "MINIO_SECRET_KEY='hunter2abc'",
        "x-api-key: hunter2abc",
        "access-key=hunter2abc",
        "Cookie: authservice_session=MTYhunter2abc",
        "pwd=hunter2abc;",
        "AccountKey=hunter2abc==",
        "private_key: hunter2abc",
        "passphrase=hunter2abc",
        "Authorization: Token hunter2abc",
        "kubestill runs ls --token hunter2abc",
        "postgres://u:123/hunter2abc@h/db",
        "secret: 'my hunter2abc'",
        "{'password': b'hunter2abc'}",
    ],
)
def test_a_secret_in_any_of_its_forms_is_left_out(text: str) -> None:
    assert "hunter2abc" not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://ml-pipeline.kubeflow:8888/apis/v2beta1: refused",
        "columns = ['token', 'secret']: two of them are missing",
        "the key 'x' is missing from dataset.json",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
