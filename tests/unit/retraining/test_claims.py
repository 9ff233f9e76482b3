"""Claims die with their run: who finds one asks Kubeflow, and a live run is never robbed."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from runs_api import EXPERIMENT, RunsApi, serve_runs
from scene import Scene, Taken, rows

from kubestill.errors import Fenced, InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.retraining import kubeflow_runs, open_registry, transitions
from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.retraining.inspection import free_claim, runs, standing, unlock
from kubestill.runtime.retraining.kubeflow_runs import API_VARIABLE
from kubestill.runtime.retraining.outcomes import abandon, conclude
from kubestill.runtime.retraining.ownership import DRIVER_VARIABLE
from kubestill.runtime.steps.open_champion import open_champion

RUN = "c07ca4d1-b03a-4da1-a8ed-1f6dfe9e25b9"
NEXT = "2086da09-50eb-4beb-8c06-6563dbcd3002"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Generator[RunsApi]:
    """The API of the Kubeflow that the runs of this scene are of."""
    with serve_runs() as served:
        monkeypatch.setenv(API_VARIABLE, served.address)
        yield served


@pytest.fixture
def held(scene: Scene, api: RunsApi) -> Taken:
    """A run that is at work on fifty rows."""
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    api.set(RUN, "terminated", state="RUNNING")
    taken = scene.run("2013-03-01", RUN)
    assert taken.status == "ready"
    api.asked.clear()
    return taken


def outcome(scene: Scene, run_id: str) -> tuple[str, str]:
    (found,) = [run for run in runs(scene.registry.uri) if run.run_id == run_id]
    return found.outcome, found.reason


@pytest.mark.parametrize(
    ("recorded", "changed", "why"),
    [
        ("terminated", {}, "Kubeflow says that it is over: FAILED."),
        ("failed", {}, "Kubeflow says that it is over: FAILED."),
        ("succeeded", {}, "Kubeflow says that it is over: SUCCEEDED."),
        ("failed", {"state": "CANCELED"}, "Kubeflow says that it is over: CANCELED."),
        ("failed", {"state": "SKIPPED"}, "Kubeflow says that it is over: SKIPPED."),
        ("missing", {}, "It was deleted from Kubeflow."),
    ],
    ids=["terminated by hand", "past its deadline", "succeeded", "canceled", "skipped", "deleted"],
)
def test_a_run_that_is_over_is_taken_over_at_once(
    scene: Scene, api: RunsApi, held: Taken, recorded: str, changed: dict[str, str], why: str
) -> None:
    api.set(RUN, recorded, **changed)
    taken = scene.run("2013-03-01", NEXT)
    assert taken.status == "ready"
    assert taken.ids() == held.ids() == list(range(100, 150))
    told = f"{why} Its rows were given back: the next run takes them."
    assert outcome(scene, RUN) == ("abandoned", told)
    assert scene.judged(taken, "healthy").outcome == "healthy"
    assert scene.registry.read().claim is None


@pytest.mark.parametrize(
    "state",
    ["RUNNING", "PENDING", "PAUSED", "CANCELING", "RUNTIME_STATE_UNSPECIFIED", "", None, "Failed"],
)
def test_a_live_run_keeps_its_window(
    scene: Scene, api: RunsApi, held: Taken, state: str | None
) -> None:
    api.set(RUN, "terminated", state=state)
    assert scene.run("2013-03-01", NEXT).status == "busy"
    assert api.asked == [(f"/apis/v2beta1/runs/{RUN}", "")]
    assert scene.judged(held, "healthy").outcome == "healthy"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((500, {}, b'{"code": 13, "message": "no database"}'), id="failing"),
        pytest.param((503, {}, b"no healthy upstream"), id="starting"),
        pytest.param((401, {}, b'{"code": 16}'), id="unauthenticated"),
        pytest.param((403, {}, b'{"code": 7}'), id="forbidden"),
        pytest.param((302, {"Location": "http://127.0.0.1:9/login"}, b""), id="login"),
        pytest.param((200, {}, b"<html>sign in</html>"), id="page"),
        pytest.param((200, {}, b"[" * 100_000), id="deep"),
        pytest.param((200, {}, b'{"run_id": "another", "state": "FAILED"}'), id="another run"),
        pytest.param((200, {}, b'{"state": "FAILED"}'), id="no run"),
        pytest.param((404, {}, b"404 page not found"), id="no API"),
        pytest.param((404, {}, b'{"code": 5, "message": "Not Found"}'), id="no such path"),
        pytest.param((200, {"Content-Encoding": "gzip"}, b"no gzip"), id="garbled"),
    ],
)
def test_answers_that_say_nothing_leave_it_to_the_lease(
    scene: Scene, api: RunsApi, held: Taken, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer = answer
    assert scene.run("2013-03-01", NEXT).status == "busy"
    assert f"Kubeflow does not say whether run {RUN} is over" in capsys.readouterr().out
    assert scene.judged(held, "healthy").outcome == "healthy"


def test_without_an_answer_the_lease_decides_as_ever(
    scene: Scene, api: RunsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.run("2013-03-01", RUN, lease_hours=1e-12)
    monkeypatch.setenv(API_VARIABLE, "http://127.0.0.1:9")
    assert scene.run("2013-03-01", NEXT).status == "ready"
    assert outcome(scene, RUN)[0] == "abandoned"
    assert "its lease ran out" in outcome(scene, RUN)[1]


@pytest.mark.parametrize(
    ("address", "seconds"),
    [
        ("http://127.0.0.1:9", 0.0),
        ("http://kubeflow.invalid:8888", 0.0),
        ("http://10.255.255.1:8888", 0.0),
        ("ftp://127.0.0.1", 0.0),
        ("http://[", 0.0),
        ("", 4.0),
        ("", 0.3),
    ],
    ids=["refused", "unknown", "unreachable", "no http", "no URL", "hanging", "trickling"],
)
def test_an_api_that_does_not_answer_costs_only_seconds(
    scene: Scene,
    api: RunsApi,
    held: Taken,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    seconds: float,
) -> None:
    monkeypatch.setenv(API_VARIABLE, address or api.address)
    api.seconds = seconds
    began = time.monotonic()
    assert scene.run("2013-03-01", NEXT).status == "busy"
    assert time.monotonic() - began < 9


def test_an_answer_may_be_large_but_not_endless(
    scene: Scene, api: RunsApi, held: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.set(RUN, "terminated", pipeline_spec={"deployed": "x" * 3_000_000})
    monkeypatch.setattr(kubeflow_runs, "_LARGEST", 2_000_000)
    assert scene.run("2013-03-01", NEXT).status == "busy"
    monkeypatch.undo()
    monkeypatch.setenv(API_VARIABLE, api.address)
    assert scene.run("2013-03-01", "another").status == "ready"


def test_a_run_of_another_kubeflow_is_not_taken_for_deleted(
    scene: Scene, api: RunsApi, held: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters may share a registry, and one knows nothing of the other's runs."""
    with serve_runs() as other:
        other.experiments = {str(uuid.uuid4())}
        monkeypatch.setenv(API_VARIABLE, other.address)
        assert scene.run("2013-03-01", NEXT).status == "busy"
        paths = [f"/apis/v2beta1/runs/{RUN}", f"/apis/v2beta1/experiments/{EXPERIMENT}"]
        assert [path for path, _ in other.asked] == paths
    monkeypatch.setenv(API_VARIABLE, api.address)
    assert scene.judged(held, "healthy").outcome == "healthy"


def test_a_claim_that_does_not_say_where_it_is_from_is_not_taken_for_deleted(
    scene: Scene, api: RunsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that an older version made, or while the API was away: its end is believed, no more."""
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    monkeypatch.setenv(API_VARIABLE, "http://127.0.0.1:9")
    assert scene.run("2013-03-01", RUN).status == "ready"
    claim = scene.registry.read().claim
    assert claim
    assert claim.owner == ""
    monkeypatch.setenv(API_VARIABLE, api.address)
    api.asked.clear()
    assert scene.run("2013-03-01", NEXT).status == "busy"
    assert [path for path, _ in api.asked] == [f"/apis/v2beta1/runs/{RUN}"]
    api.set(RUN, "terminated")
    assert scene.run("2013-03-01", "third").status == "ready"


def test_a_local_run_is_looked_up_here_and_not_asked_for(
    scene: Scene, api: RunsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    api.asked.clear()
    monkeypatch.setenv(DRIVER_VARIABLE, str(os.getpid()))
    scene.run("2013-03-01", RUN)
    assert scene.run("2013-03-01", NEXT).status == "busy"
    assert api.asked == []


class TestSigningIn:
    """Single-user: no token. Several users: the pod's own, to this address and no other."""

    @pytest.fixture
    def mounted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "token").write_text("for-the-pipelines-api\n")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        return "Bearer for-the-pipelines-api"

    @pytest.fixture
    def account(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "account").write_text("of-the-account")
        monkeypatch.setattr(kubeflow_runs, "_ACCOUNT", str(tmp_path / "account"))
        return "Bearer of-the-account"

    def test_the_mounted_token_is_shown(
        self, scene: Scene, api: RunsApi, held: Taken, mounted: str, account: str
    ) -> None:
        api.token = mounted
        api.set(RUN, "terminated")
        assert scene.run("2013-03-01", NEXT).status == "ready"
        assert {token for _, token in api.asked} == {mounted}

    def test_the_accounts_token_is_shown_only_when_one_is_asked_for(
        self, scene: Scene, api: RunsApi, held: Taken, account: str
    ) -> None:
        assert scene.run("2013-03-01", NEXT).status == "busy"
        assert {token for _, token in api.asked} == {""}
        api.token = account
        api.set(RUN, "terminated")
        assert scene.run("2013-03-01", "third").status == "ready"

    def test_it_is_never_shown_to_anybody_else(
        self,
        scene: Scene,
        api: RunsApi,
        held: Taken,
        mounted: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with serve_runs() as other:
            host = other.address.removeprefix("http://")
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, other.address)
                monkeypatch.setenv(name.upper(), other.address)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
            monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
            api.answer = (307, {"Location": f"http://{host}/apis/v2beta1/runs/{RUN}"}, b"")
            assert scene.run("2013-03-01", NEXT).status == "busy"
            assert other.asked == []
        assert {token for _, token in api.asked} == {mounted}
        assert "for-the-pipelines-api" not in capsys.readouterr().out

    def test_a_token_that_cannot_be_a_header_is_not_shown_either(
        self,
        scene: Scene,
        api: RunsApi,
        held: Taken,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "token").write_text("two\nlines")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        assert scene.run("2013-03-01", NEXT).status == "busy"
        assert "lines" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "http://ml-pipeline.kubeflow:8888"),
        (
            {"ML_PIPELINE_SERVICE_HOST": "10.96.7.7", "ML_PIPELINE_SERVICE_PORT": "8889"},
            "http://10.96.7.7:8889",
        ),
        ({"ML_PIPELINE_SERVICE_HOST": "fd00::7"}, "http://[fd00::7]:8888"),
        ({API_VARIABLE: "api.mine:80/", "ML_PIPELINE_SERVICE_HOST": "x"}, "http://api.mine:80"),
        ({API_VARIABLE: "https://kubeflow.mine/pipeline"}, "https://kubeflow.mine/pipeline"),
    ],
    ids=["no cluster", "a user's namespace", "its own", "IPv6", "named", "named with a path"],
)
def test_where_the_api_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], address: str
) -> None:
    for name in list(os.environ):
        if name.startswith(("KUBE", "ML_PIPELINE")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert kubeflow_runs._find_address() == address


def test_a_retry_of_a_run_that_was_over_is_refused(
    scene: Scene, api: RunsApi, held: Taken, tmp_path: Path
) -> None:
    """Kubeflow's "Retry" keeps the run's id: what it wrote down is of rows that others have."""
    api.set(RUN, "failed")
    taken = scene.run("2013-03-01", NEXT)
    api.set(RUN, "failed", state="RUNNING")
    with pytest.raises(Fenced, match=r"has ended \(abandoned\); start a new run"):
        scene.run("2013-03-01", RUN)
    names = ("model", "ledger", "checkpoint", "golden")
    ports = {name: LocalArtifact(str(tmp_path / name)) for name in names}
    with pytest.raises(Fenced, match=f"run {NEXT} does.*start a new run instead of retrying"):
        open_champion(registry=scene.registry.uri, run_id=RUN, **ports)
    with pytest.raises(Fenced, match="start a new run instead of retrying"):
        scene.promote(held)
    assert conclude(scene.registry, RUN, succeeded=False).outcome == "abandoned"
    assert scene.judged(taken, "healthy").outcome == "healthy"


def test_a_run_whose_lease_ran_out_may_not_come_back_for_other_rows(scene: Scene) -> None:
    """The verdict that it wrote down would close a window that nobody judged."""
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    lost = scene.run("2013-03-01", RUN, lease_hours=1e-12)
    reason = "It was healthy."
    scene.registry.append(Judgement(run_id=RUN, step="judge", decision="healthy", reason=reason))
    scene.judged(scene.run("2013-03-01", NEXT), "healthy")
    scene.deliver("c.parquet", rows(150, 50, day="2013-03-01"))
    with pytest.raises(Fenced, match="has ended"):
        scene.run("2013-04-01", RUN)
    assert conclude(scene.registry, RUN, succeeded=False).outcome == "abandoned"
    assert scene.run("2013-04-01", "third").ids() == list(range(150, 200))
    assert lost.ids() == list(range(100, 150))


class TestTerminatedByHand:
    """`free_claim`, for `kubestill runs stop`."""

    def test_the_rows_are_the_next_runs(self, scene: Scene, held: Taken) -> None:
        judged = Judgement(run_id=RUN, step="judge", decision="degraded", reason="It decays.")
        scene.registry.append(judged)
        said = [free_claim(scene.registry.uri, RUN) for _ in range(2)]
        assert said[0] == said[1]
        assert outcome(scene, RUN) == (
            "abandoned",
            "It was terminated by hand. The last verdict was 'degraded': It decays. "
            "Its rows were given back: the next run takes them.",
        )
        assert scene.run("2013-03-01", NEXT).ids() == held.ids()

    def test_another_runs_claim_is_left_alone(self, scene: Scene, held: Taken) -> None:
        assert free_claim(scene.registry.uri, NEXT) is None
        claim = scene.registry.read().claim
        assert claim
        assert claim.run_id == RUN
        assert all(run.run_id != NEXT for run in runs(scene.registry.uri))

    def test_a_run_without_a_claim_frees_no_claim(
        self, scene: Scene, api: RunsApi, held: Taken
    ) -> None:
        scene.run("2013-03-01", NEXT)
        done = free_claim(scene.registry.uri, NEXT)
        assert done
        assert done.outcome == "abandoned"
        assert "It held no rows" in done.reason
        assert scene.judged(held, "healthy").outcome == "healthy"

    def test_a_run_that_ended_keeps_its_outcome(self, scene: Scene, held: Taken) -> None:
        scene.promote(held)
        done = free_claim(scene.registry.uri, RUN)
        assert done
        assert done.outcome == "promoted"
        assert scene.registry.read().claim is None

    def test_a_run_that_dies_after_its_swap_is_promoted(self, scene: Scene, held: Taken) -> None:
        champion = scene.champion(RUN, "window")
        scene.registry.change(lambda state: transitions.promote(state, champion))
        done = free_claim(scene.registry.uri, RUN)
        assert done
        assert done.outcome == "promoted"

    def test_its_steps_that_go_on_are_refused(self, scene: Scene, held: Taken) -> None:
        free_claim(scene.registry.uri, RUN)
        with pytest.raises(Fenced, match="holds no window any more"):
            scene.promote(held)
        assert scene.judged(held, "healthy").outcome == "abandoned"

    def test_no_registry_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="there is no registry here"):
            free_claim(str(tmp_path / "nothing"), RUN)


class TestUnlockedByHand:
    """`kubestill registry unlock`."""

    def test_it_says_who_holds_it_and_gives_the_rows_back(
        self, scene: Scene, held: Taken, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(API_VARIABLE)
        told: list[str] = []
        done = unlock(scene.registry.uri, confirm=told.append)
        assert re.fullmatch(
            rf"run {RUN}, last heard of at [\d -]+:\d\d, its lease ends at [\d -]+:\d\d UTC\.",
            told[0],
        )
        assert standing(scene.registry.uri).at_work == "nobody"
        assert done.startswith("abandoned: It was unlocked by hand.")
        assert scene.run("2013-03-01", NEXT).ids() == held.ids()
        with pytest.raises(Fenced, match="holds no window any more"):
            scene.promote(held)

    def test_a_run_that_kubeflow_says_goes_on_is_not_robbed(
        self, scene: Scene, held: Taken
    ) -> None:
        with pytest.raises(InvalidInput, match="it is at work; end it first"):
            unlock(scene.registry.uri)
        assert RUN in standing(scene.registry.uri).at_work

    def test_who_answers_no_changes_nothing(
        self, scene: Scene, held: Taken, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(API_VARIABLE)

        def refuse(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unlock(scene.registry.uri, confirm=refuse)
        assert RUN in standing(scene.registry.uri).at_work

    def test_a_run_that_lives_here_is_not_robbed(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(DRIVER_VARIABLE, str(os.getpid()))
        scene.started()
        scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
        scene.run("2013-03-01", RUN)
        with pytest.raises(InvalidInput, match="it is at work; end it first"):
            unlock(scene.registry.uri)
        assert RUN in standing(scene.registry.uri).at_work

    def test_what_kubeflow_knows_is_the_reason(
        self, scene: Scene, api: RunsApi, held: Taken
    ) -> None:
        api.set(RUN, "terminated", state="FAILED")
        assert "Kubeflow says that it is over: FAILED." in unlock(scene.registry.uri)

    def test_nobody_holds_it(self, scene: Scene) -> None:
        scene.started()
        assert unlock(scene.registry.uri) == f"no run holds {scene.registry.uri}"


@pytest.mark.parametrize("number", range(8))
def test_a_swap_in_the_same_moment_wins_or_loses_as_a_whole(scene: Scene, number: int) -> None:
    """Never a champion of a run that is called abandoned, nor the other way round."""
    scene.deliver("a.parquet", rows(0, 4))
    taken = scene.run("2013-02-01", RUN)
    refused: list[Fenced] = []
    barrier = threading.Barrier(2)

    def swap() -> None:
        barrier.wait()
        try:
            scene.promote(taken)
        except Fenced as fenced:
            refused.append(fenced)

    thread = threading.Thread(target=swap)
    thread.start()
    barrier.wait()
    time.sleep(number * 1e-3)
    done = abandon(scene.registry, RUN, "Terminated.")
    thread.join()
    assert done
    state = open_registry(scene.registry.uri).read()
    assert (state.champion is not None) == (done.outcome == "promoted") == (not refused)
    assert state.claim is None
