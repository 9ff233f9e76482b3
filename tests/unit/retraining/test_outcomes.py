"""How runs end: every path of continuous-retraining under every word that Kubeflow may say.

A path is what the run's own steps wrote down. Kubeflow's states are those of the recordings, and it
never says a cause: `error_code` and `error_message` are empty.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kfp.dsl import PipelineTaskFinalStatus
from scene import Scene, Taken, rows

from kubestill.cli.main import main
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.retraining import transitions
from kubestill.runtime.retraining.history import Judgement
from kubestill.runtime.steps.failures import record_failure
from kubestill.runtime.steps.record_outcome import record_outcome

Start = Callable[[Path], "Ended"]
Path_ = Callable[..., None]
Play = Callable[..., "Ended"]
WELL = ("COMPLETE", "RUNNING", "SUCCEEDED")
BADLY = ("FAILED", "CANCELED")
STATES = (*WELL, *BADLY)


class Ended:
    """One run up to its exit handler, and the exit handler."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.root = f"{scene.folder}/pipelines/continuous-retraining/{uuid.uuid4()}"
        self.taken: Taken | None = None

    @property
    def run_id(self) -> str:
        assert self.taken
        return self.taken.run_id

    def collect(self, **given: Any) -> Taken:
        self.taken = self.scene.run("2013-03-01", **given)
        return self.taken

    def judge(self, decision: str, *, step: str = "judge", **more: Any) -> None:
        reason = f"It is {decision}."
        judged = Judgement(run_id=self.run_id, step=step, decision=decision, reason=reason, **more)
        self.scene.registry.append(judged)

    def swap(self) -> None:
        """What promote-model does to the registry."""
        held = transitions.holding(self.scene.registry.read(), self.run_id)
        champion = self.scene.champion(self.run_id, held.window.id)
        self.scene.registry.change(lambda state: transitions.promote(state, champion))

    def fails(self, task: str, message: str = "the disk is full") -> None:
        """What `kubestill.step` leaves of a step that fails."""
        uri = f"{self.root}/{task}/{uuid.uuid4()}/summary"
        outputs = {"artifacts": {"summary": {"artifacts": [{"uri": uri}]}}}
        component = task.replace("-", "_")
        given = {"outputs": outputs}
        assert record_failure(given, error="OSError", message=message, component=component)

    def end(self, state: str, run_id: str = "") -> str:
        """Run the exit handler, as often as it likes; return the outcome."""
        status = PipelineTaskFinalStatus(
            state=state,
            pipeline_job_resource_name="continuous-retrainingxd995-1-2002874981",
            pipeline_task_name="exit-handler-1",
            error_code=None,  # pyright: ignore[reportArgumentType]
            error_message=None,  # pyright: ignore[reportArgumentType]
        )
        path = self.scene.folder / "summary"
        uri = f"{self.root}/record-outcome/{uuid.uuid4()}/summary"
        registry = self.scene.registry.uri
        said: set[tuple[str, str]] = set()
        for _ in range(2):
            (outcome,) = record_outcome(
                registry=registry,
                run_id=run_id or self.run_id,
                final_status=status,
                summary=LocalArtifact(str(path), uri=uri),
            )
            said.add((outcome, path.read_text()))
        assert len(said) == 1
        return outcome

    def copy(self, folder: Path) -> Ended:
        """The same run somewhere else, to end in another way."""
        shutil.copytree(self.scene.folder, folder, dirs_exist_ok=True)
        copied = Ended(Scene(folder))
        copied.scene.number = self.scene.number
        copied.root = self.root.replace(str(self.scene.folder), str(folder))
        copied.taken = self.taken
        return copied

    @property
    def reason(self) -> str:
        outcome = self.scene.registry.run(self.run_id).outcome
        assert outcome
        return outcome.reason


def first(folder: Path) -> Ended:
    """A run without a champion."""
    scene = Scene(folder)
    scene.deliver("first.parquet", rows(0, 100))
    return Ended(scene)


def with_champion(folder: Path) -> Ended:
    """A run with a champion, and fifty rows that nobody has taken."""
    scene = Scene(folder)
    scene.started()
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    return Ended(scene)


@pytest.fixture
def later(tmp_path: Path) -> Ended:
    return with_champion(tmp_path)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Plays each path once, for as many ends of it as there are."""
    played: dict[str, Ended] = {}

    def play(start: Start, path: Path_, *args: Any) -> Ended:
        name = "-".join([start.__name__, path.__name__, *map(str, args)])
        if name not in played:
            played[name] = start(tmp_path_factory.mktemp("played"))
            path(played[name], *args)
        return played[name].copy(tmp_path_factory.mktemp("copy"))

    return play


def waiting(run: Ended) -> None:
    assert run.collect(min_rows=1000).status == "waiting"


def busy(run: Ended) -> None:
    run.scene.run("2013-03-01", "other")
    assert run.collect().status == "busy"


def healthy(run: Ended) -> None:
    run.collect()
    run.judge("healthy")


def inconclusive(run: Ended) -> None:
    run.collect()
    run.judge("insufficient")


def unfit(run: Ended) -> None:
    run.collect()
    run.judge("unfit", unfit=("x: in another unit.",))


def rejected(run: Ended) -> None:
    run.collect()
    run.judge("degraded")
    run.judge("reject", step="challenge")


def undecided(run: Ended) -> None:
    run.collect()
    run.judge("degraded")
    run.judge("insufficient", step="challenge")


def promoted(run: Ended) -> None:
    run.collect()
    run.judge("degraded")
    run.judge("promote", step="challenge")
    run.swap()


def robbed(run: Ended) -> None:
    """Its lease ran out while it was at work, and it fails where it would promote."""
    taken = run.collect(lease_hours=1e-12)
    run.judge("degraded")
    run.judge("promote", step="challenge")
    assert run.scene.run("2013-03-01", "other").status == "ready"
    run.taken = taken
    run.fails("promote-model", "run holds no window any more")


LATER: dict[Path_, str] = {
    waiting: "waiting",
    busy: "busy",
    healthy: "healthy",
    inconclusive: "inconclusive",
    unfit: "unfit",
    rejected: "rejected",
    undecided: "inconclusive",
    promoted: "promoted",
    robbed: "abandoned",
}
STANDS = (promoted, robbed)
"""Whose end is in the registry's state, whatever Kubeflow says."""
HOLDS_NOTHING = (waiting, busy)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", LATER, ids=lambda path: path.__name__)
def test_a_run_with_a_champion(play: Play, path: Path_, state: str) -> None:
    later = play(with_champion, path)
    before = later.scene.registry.read()
    failed = state in BADLY and path not in STANDS
    outcome = "failed" if failed else LATER[path]
    assert later.end(state) == outcome
    registry = later.scene.registry.read()
    # Nothing is held on to, and nobody else's window is touched.
    held = before.claim.run_id if before.claim else ""
    assert (registry.claim.run_id if registry.claim else "") == held.replace(later.run_id, "")
    closed = {w.run_id: w.verdict for w in registry.windows}
    is_closed = outcome in ("healthy", "inconclusive", "unfit", "rejected", "promoted")
    assert closed.get(later.run_id, "") == (outcome if is_closed else "")
    if failed:
        assert ("canceled" in later.reason) == (state == "CANCELED")
        given_back = "Its rows were given back" in later.reason
        assert given_back == (path not in HOLDS_NOTHING)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("decision", "outcome"),
    [
        ("promote", "promoted"),
        ("reject", "rejected"),
        ("broken", "rejected"),
        ("insufficient", "inconclusive"),
    ],
)
def test_a_first_champion(play: Play, state: str, decision: str, outcome: str) -> None:
    run = play(first, tried, decision)
    stands = decision == "promote"
    assert run.end(state) == ("failed" if state in BADLY and not stands else outcome)
    registry = run.scene.registry.read()
    assert registry.claim is None
    # Nobody else was judged: what the first candidate failed on is the next one's to learn from.
    assert len(registry.windows) == (1 if stands else 0)
    assert (registry.champion is not None) == stands


def tried(run: Ended, decision: str) -> None:
    """Train and judge a first champion."""
    assert run.collect().status == "bootstrap"
    run.judge(decision, step="challenge")
    if decision == "promote":
        run.swap()


def up_to(run: Ended, task: str) -> None:
    """Run what comes before a task."""
    if task == "collect-fresh":
        # It has no entry: the run is known by its id alone.
        run.taken = Taken("run-without-a-word", "", "", "fine-tune", run.scene.folder)
        return
    first = run.collect().status == "bootstrap"
    if task in ("open-champion", "continuous-eval"):
        return
    if not first:
        run.judge("degraded")
    if task in ("promote-model", "promote-model-2"):
        run.judge("promote", step="challenge")


STEPS = ["collect-fresh", "open-champion", "continuous-eval", "select-checkpoint"]
STEPS += ["finetune-fresh", "continuous-eval-2", "promote-model"]
FIRST_STEPS = ["collect-fresh", "overfit-batch", "train-teacher", "continuous-eval-3"]
FIRST_STEPS += ["promote-model-2"]


@pytest.mark.parametrize("word", [True, False], ids=["with a word", "without"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("task", STEPS)
def test_a_step_that_fails(play: Play, task: str, state: str, word: bool) -> None:
    later = play(with_champion, up_to, task)
    check_failed(later, task, state, word)
    # The next run takes the same rows.
    assert later.scene.run("2013-03-01").ids() == list(range(100, 150))


@pytest.mark.parametrize("word", [True, False], ids=["with a word", "without"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("task", FIRST_STEPS)
def test_a_step_that_fails_before_there_is_a_champion(
    play: Play, task: str, state: str, word: bool
) -> None:
    run = play(first, up_to, task)
    check_failed(run, task, state, word)
    assert run.scene.run("2013-03-01").ids() == list(range(100))
    assert run.scene.registry.read().champion is None


def check_failed(run: Ended, task: str, state: str, word: bool) -> None:
    if word:
        run.fails(task)
    assert run.end(state) == "failed"
    assert run.scene.registry.read().claim is None
    if word:
        assert run.reason.startswith(f"{task}: OSError: the disk is full.")
    elif state == "FAILED":
        assert "left no message: a pod that is killed" in run.reason
    elif state == "CANCELED":
        assert run.reason.startswith("It was canceled.")
    else:
        assert "no verdict closes its window" in run.reason


def test_a_failure_after_the_swap_does_not_undo_it_and_is_reported(later: Ended) -> None:
    promoted(later)
    later.fails("promote-model", "the Model Registry is gone")
    assert later.end("FAILED") == "promoted"
    assert later.reason == "It is promote. promote-model: OSError: the Model Registry is gone."


@pytest.mark.parametrize("path", [healthy, promoted], ids=lambda path: path.__name__)
def test_a_failure_that_was_cured_is_no_failure(later: Ended, path: Path_) -> None:
    """The state decides: a record may be left where the store was away when it was cleared."""
    path(later)
    later.fails("continuous-eval")
    assert later.end("COMPLETE") == LATER[path]
    assert "OSError" not in later.reason


def test_the_last_failure_is_the_cause_and_never_the_exit_handlers_own(later: Ended) -> None:
    up_to(later, "finetune-fresh")
    later.fails("finetune-fresh", "no memory\n  on this node")
    later.fails("record-outcome", "the registry was away")
    assert later.end("FAILED") == "failed"
    assert later.reason.startswith("finetune-fresh: OSError: no memory on this node. ")
    assert "The last verdict was 'degraded': It is degraded." in later.reason


def test_the_cause_is_listed(later: Ended) -> None:
    up_to(later, "finetune-fresh")
    later.fails("finetune-fresh", "cannot read s3://user:SECRET@host/rows")
    later.end("FAILED")
    listed = CliRunner().invoke(main, ["registry", "ls", later.scene.registry.uri])
    assert "finetune-fresh: OSError: cannot read s3://***@host/rows" in listed.output
    assert "SECRET" not in listed.output
    history = Path(later.scene.registry.uri) / "history"
    assert not any("SECRET" in file.read_text() for file in history.iterdir())


def test_causes_that_cannot_be_read_leave_the_outcome_alone(
    later: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    up_to(later, "finetune-fresh")
    later.root = "ftp://nobody/reads"
    assert later.end("FAILED") == "failed"
    assert "why steps failed cannot be read" in capsys.readouterr().out


def test_a_retry_that_judged_another_model_decides(later: Ended) -> None:
    later.collect()
    later.judge("degraded")
    for step, decision in (("", "promote"), ("-0123abcd", "promote"), ("-fedc9876", "reject")):
        later.judge(decision, step=f"challenge{step}")
        time.sleep(0.005)
    assert later.end("COMPLETE") == "rejected"


def test_kubeflows_own_message_is_reported_if_there_is_one(later: Ended) -> None:
    up_to(later, "finetune-fresh")
    status = PipelineTaskFinalStatus("FAILED", "", "", 9, "driver: no such image")
    summary = LocalArtifact(str(later.scene.folder / "summary"))
    registry = later.scene.registry.uri
    record_outcome(registry=registry, run_id=later.run_id, final_status=status, summary=summary)
    assert later.reason.startswith("Kubeflow says: driver: no such image")
