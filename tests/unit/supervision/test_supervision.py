"""What the supervisor decides: how often, after which errors, and what it clears before."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError

from kubestill.errors import (
    ClusterError,
    CorruptData,
    Diverged,
    Fenced,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Problem,
    Refused,
    StoreUnavailable,
    TrainingFailed,
)
from kubestill.supervision import RESTARTS, allowed_restarts, forget_outputs, last_try, may_pass


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("s3://bucket does not answer"),
        ConnectionResetError("by peer"),
        TimeoutError("timed out"),
        OSError(errno.ESTALE, "stale file handle"),
        ClusterError("unavailable", status=503),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2036, unhandled system error"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]"),
        RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed."),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:30]}",
)
def test_errors_of_stores_networks_and_devices_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput([Problem("epochs", -1, "use 1 or more")]),
        Diverged("loss became NaN"),
        TrainingFailed("recorded"),
        Fenced("a newer attempt"),
        Refused("no"),
        CorruptData("not what its digest says"),
        PermissionDenied("403"),
        NotFound("404"),
        ClusterError("no such pipeline", status=404),
        FileNotFoundError("x"),
        OSError(errno.ENOSPC, "no space left on device"),
        ValueError("of a bug"),
        MemoryError(),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:30]}",
)
def test_errors_of_input_and_code_do_not(error: Exception) -> None:
    assert not may_pass(error)


def test_a_translated_error_counts_as_its_cause() -> None:
    translated = InvalidInput([Problem("checkpoint_uri", "s3://b", "cannot be used")])
    translated.__cause__ = StoreUnavailable("no answer")
    assert may_pass(translated)
    translated.__cause__ = PermissionDenied("403")
    assert not may_pass(translated)
    final = Diverged("NaN")
    final.__cause__ = ConnectionResetError("by peer")
    assert not may_pass(final)


@pytest.mark.parametrize(
    ("component", "variable", "allowed"),
    [
        ("train_teacher", "", 3),
        ("train_student", "10", 10),
        ("finetune_fresh", "0", 0),
        ("generate_synthetic", "", 1),
        ("generate_synthetic", "10", 1),
        ("generate_synthetic", "0", 0),
    ],
)
def test_training_gets_more_restarts_than_steps_that_start_over(
    component: str, variable: str, allowed: int
) -> None:
    assert allowed_restarts(component, {RESTARTS: variable}) == allowed


@pytest.mark.parametrize("text", ["-1", "many", "1.5", "²", "9" * 30])
def test_a_wrong_number_of_restarts_is_told_and_ends_no_step(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert allowed_restarts("train_teacher", {RESTARTS: text}) == 3
    said = capsys.readouterr().out
    assert f"{RESTARTS} = {text!r}" in said
    assert "give a whole number" in said


def test_no_try_came_before_the_first() -> None:
    assert last_try({}) is None


def test_outputs_of_a_dead_try_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    def written(name: str, *, folder: bool = False) -> Path:
        path = tmp_path / name
        if folder:
            path.mkdir(parents=True)
            path = path / "part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
        return path

    model = written("task/model", folder=True)
    metrics, reason = written("task/metrics"), written("task/reason")
    outcome = written("task/executor_output.json")
    kept = [written("task/executor-logs-0"), written("task/task.log")]
    kept += [written("task/ledger.d/ledger.json"), written("other/model")]
    ports = {"model": "model", "metrics": "metrics", "executor-logs": "executor-logs-0"}
    forget_outputs(
        {
            "inputs": {"artifacts": {"dataset": {"artifacts": [{"uri": str(kept[-1])}]}}},
            "outputs": {
                "outputFile": str(outcome),
                "parameters": {
                    "reason": {"outputFile": str(reason)},
                    "none": {"outputFile": str(tmp_path / "none")},
                },
                "artifacts": {
                    name: {"artifacts": [{"name": name, "uri": str(tmp_path / "task" / file)}]}
                    for name, file in ports.items()
                },
            },
        }
    )
    assert not [p for p in (model.parent, metrics, reason, outcome) if p.exists()]
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("scheme", ["gs", "s3", "minio"])
def test_outputs_lie_where_kubeflows_executor_writes_them(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kfp.dsl import Artifact

    uri = f"{scheme}://bucket/run/model"
    seen: list[str] = []
    monkeypatch.setattr("os.remove", seen.append)
    forget_outputs({"outputs": {"artifacts": {"model": {"artifacts": [{"uri": uri}]}}}})
    assert seen == [Artifact(uri=uri).path]


def test_a_try_survives_its_way_through_the_environment() -> None:
    told = {"started": 17.5, "seconds": 2.0, "ended": "killed by SIGKILL"}
    found = last_try({"KUBESTILL_LAST_TRY": json.dumps(told)})
    assert found is not None
    assert vars(found) == told
