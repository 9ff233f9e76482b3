"""The checkpointer on a local folder: what comes back, what is refused, and what is said."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kubestill.errors import Fenced, InvalidInput, StoreUnavailable, TrainingFailed
from kubestill.runtime.checkpoints import (
    Checkpoint,
    Checkpointer,
    CheckpointSettings,
    Ledger,
    Place,
    TrainingState,
    load_state,
    protocol,
    read_checkpoint_artifact,
    read_ledger_artifact,
    resolve_place,
    write_checkpoint_artifact,
    write_ledger_artifact,
)
from kubestill.runtime.checkpoints.inspection import describe, ledgers, show, verify
from kubestill.runtime.checkpoints.place import local_root
from kubestill.runtime.checkpoints.ranks import Ranks
from kubestill.runtime.checkpoints.writer import CheckpointWriter

SETTINGS = CheckpointSettings(heartbeat_seconds=0.1, keep_last=3, keep_bytes=0)


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)

    def __contains__(self, text: object) -> bool:
        return any(str(text) in line for line in self)


def state(step: int) -> TrainingState:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model/w": torch.randn(7, 5, generator=generator, requires_grad=True),
        "model/half": torch.randn(3, generator=generator).bfloat16(),
        "model/mask": torch.tensor([True, False]),
        "optimizer/0/step": torch.tensor(float(step)),
        "empty": torch.zeros(0, 4),
        "strided": torch.randn(4, 6, generator=generator).t(),
        "rank/rng/torch": generator.get_state(),
    }
    return TrainingState(tensors, {"step": step, "nested": {"a": [1, None, "x"]}})


def assert_same(one: TrainingState, other: TrainingState) -> None:
    assert one.meta == other.meta
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor, other.tensors[name]), name


def place_at(folder: Path, owner: str = "me") -> Place:
    return resolve_place(str(folder), "exp", "f00", "", owner=owner)


def opened(folder: Path, *, said: Said | None = None, owner: str = "me", **options: Any):
    options = {"settings": SETTINGS, "numerics": {"threads": 1}, **options}
    settings = options.pop("settings")
    announce = Said() if said is None else said
    return Checkpointer.open(place_at(folder, owner), settings, announce=announce, **options)


def save(checkpointer: Checkpointer, step: int, kind: Any = "milestone", **metrics: float) -> None:
    checkpointer.save(
        state(step), kind=kind, step=step, epoch=step / 2, examples=8 * step, metrics=metrics
    )


def trained(folder: Path, *steps: int) -> Ledger:
    with opened(folder) as checkpointer:
        for step in steps:
            save(checkpointer, step)
    return ledgers(str(folder))[0]


def state_file(folder: Path, step: int) -> Path:
    (found,) = folder.glob(f"exp/f00/{step:09d}-*/*.safetensors")
    return found


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    trained(tmp_path, 1, 2)
    said = Said()
    with opened(tmp_path, said=said) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(2))
        assert checkpointer.exact
        assert checkpointer.resumed is not None
        assert checkpointer.resumed.step == 2
    assert "with the same bits" in said


def test_a_generator_takes_back_its_state_from_wherever_it_lay_in_the_file(tmp_path: Path) -> None:
    # PyTorch reads it from the beginning of its storage, and crashes on what else lies there.
    generator = torch.Generator().manual_seed(5)
    noise = {f"odd/{n}": torch.full((n,), n, dtype=torch.uint8) for n in range(1, 9)}
    made = TrainingState({**noise, "rng": generator.get_state()})
    with opened(tmp_path) as checkpointer:
        checkpointer.save(made, kind="recovery", step=1, epoch=0, examples=0)
    with opened(tmp_path) as checkpointer:
        restored = checkpointer.restore()
    assert restored is not None
    assert all(tensor.storage_offset() == 0 for tensor in restored.tensors.values())
    again = torch.Generator()
    again.set_state(restored.tensors["rng"])
    assert torch.equal(torch.rand(9, generator=again), torch.rand(9, generator=generator))


def test_a_state_that_was_taken_over_takes_no_more_memory(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    with opened(tmp_path) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        alive = weakref.ref(restored)
        del restored
        gc.collect()
        assert alive() is None
        assert checkpointer.resumed is not None


def test_a_save_holds_the_moment_it_was_called_at(tmp_path: Path) -> None:
    live = state(1)
    with opened(tmp_path) as checkpointer:
        checkpointer.save(live, kind="recovery", step=1, epoch=0, examples=0)
        with torch.no_grad():
            live.tensors["model/w"].add_(1)
        live.meta["nested"]["a"].append("later")
    with opened(tmp_path) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(1))


def test_another_numerics_key_resumes_and_says_so(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    said = Said()
    with opened(tmp_path, said=said, numerics={"threads": 2}) as checkpointer:
        assert checkpointer.restore() is not None
        assert not checkpointer.exact
    assert "NOT with the same bits: threads: 1 then, 2 now" in said


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return (os.mkdir, (os.environ["BOMB"],))


def make_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, make_pickle])
@pytest.mark.parametrize("what", ["state", "manifest"])
def test_a_damaged_checkpoint_is_skipped_loudly(
    tmp_path: Path,
    damage: Callable[[Path], None],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    trained(tmp_path, 1, 2)
    path = state_file(tmp_path, 2)
    damage(path if what == "state" else path.with_name("manifest.json"))
    assert len(verify(str(tmp_path))) == 1
    said = Said()
    with opened(tmp_path, said=said) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(1))
        assert [e.step for e in checkpointer.ledger.milestones] == [1]
        assert "step 2" in checkpointer.ledger.notices[0].text
        save(checkpointer, 2)
    assert "the checkpoint of step 2 is damaged" in said
    assert not (tmp_path / "exploded").exists()
    # The same step, trained again, takes the damaged one's place.
    assert [row.state for row in describe(str(tmp_path))] == ["ok", "ok"]
    assert verify(str(tmp_path)) == []


def test_nothing_whole_at_all_starts_afresh(tmp_path: Path) -> None:
    trained(tmp_path, 1, 2)
    flip(state_file(tmp_path, 1))
    flip(state_file(tmp_path, 2))
    with opened(tmp_path) as checkpointer:
        assert checkpointer.restore() is None


@pytest.mark.parametrize("damage", ["torn", "gone", "huge"])
def test_a_lost_ledger_is_rebuilt_from_manifests(tmp_path: Path, damage: str) -> None:
    before = trained(tmp_path, 1, 2)
    for path in (tmp_path / "exp/f00").glob("ledger.json*"):
        if damage == "torn":
            path.write_bytes(b'{"format": "kube')
        elif damage == "huge":
            os.truncate(path, 1 << 36)
        else:
            path.unlink()
    with opened(tmp_path) as checkpointer:
        assert checkpointer.ledger.entries == before.entries
        attempt = checkpointer.ledger.attempt
        assert attempt is not None
        assert attempt.number == 2
        assert "rebuilt" in checkpointer.ledger.notices[0].text


def test_a_checkpoint_of_another_format_version_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    (path,) = [p for p in (tmp_path / "exp/f00").glob("ledger.json*")][-1:]
    path.write_bytes(path.read_bytes().replace(b"ledger/1", b"ledger/9"))
    with pytest.raises(InvalidInput, match=r"kubestill/ledger/9.*another version"):
        opened(tmp_path)


def test_a_result_is_adopted(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        save(checkpointer, 1)
        assert checkpointer.finished is None
        ledger = checkpointer.finish({"score": 1.5})
        assert checkpointer.finish({"score": 1.5}).finished == {"score": 1.5}
    assert [entry.step for entry in ledger.entries] == [1]
    with opened(tmp_path, owner="another run") as checkpointer:
        assert checkpointer.finished == {"score": 1.5}
        assert checkpointer.finish({"score": 9}).finished == {"score": 1.5}
    assert show(str(tmp_path))[0].status == "finished"


def test_a_permanent_failure_is_raised_again_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        checkpointer.fail("the loss became nan")
    with pytest.raises(TrainingFailed, match="the loss became nan"):
        opened(tmp_path)
    with opened(tmp_path, resume="never") as checkpointer:
        assert checkpointer.restore() is None


def test_must_resume_and_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nothing to resume"):
        opened(tmp_path, resume="must")
    # Nothing was claimed: who trains here next is the first, and need not wait.
    assert not list(tmp_path.glob("exp/f00/ledger.json*"))
    with opened(tmp_path, owner="another run") as checkpointer:
        assert checkpointer.ledger.attempt is not None
        assert checkpointer.ledger.attempt.number == 1


def test_must_resume_and_nothing_is_whole(tmp_path: Path) -> None:
    trained(tmp_path, 1, 2)
    flip(state_file(tmp_path, 2))
    with opened(tmp_path, resume="must") as checkpointer:
        assert checkpointer.restore() is not None
    flip(state_file(tmp_path, 1))
    remedy = "nothing to resume at .*every checkpoint there is damaged.*use 'auto'"
    with opened(tmp_path, resume="must") as checkpointer:
        with pytest.raises(InvalidInput, match=remedy) as caught:
            checkpointer.restore()
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("resume", "must")
    before = ledgers(str(tmp_path))[0].attempt
    with pytest.raises(InvalidInput, match="nothing to resume"):
        opened(tmp_path, resume="must")
    assert ledgers(str(tmp_path))[0].attempt == before


def test_must_resume_adopts_a_result_that_lists_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        checkpointer.finish({"score": 1})
    with opened(tmp_path, resume="must") as checkpointer:
        assert checkpointer.finished == {"score": 1}


def test_a_retry_of_the_same_task_fences_the_old_one(tmp_path: Path) -> None:
    def train_on(checkpointer: Checkpointer) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            checkpointer.recovery_due()
            time.sleep(0.01)

    with opened(tmp_path) as old:
        save(old, 1)
        old.flush()
        with opened(tmp_path) as new:
            with pytest.raises(Fenced, match="attempt 2 of me took over"):
                train_on(old)
            with pytest.raises(Fenced):
                save(old, 2)
            with pytest.raises(Fenced):
                old.finish({})
            assert new.restore() is not None
            save(new, 2)
    assert [row.attempt for row in describe(str(tmp_path))] == [1, 2]


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_another_run_waits_while_the_first_lives_and_adopts_its_result(
    tmp_path: Path, resume: str
) -> None:
    first = opened(tmp_path)
    found: list[Any] = []
    said = Said()

    def second() -> None:
        with opened(tmp_path, said=said, owner="another run", resume=resume) as checkpointer:
            found.append(checkpointer.finished)

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.6)  # six heartbeats
    assert not found
    first.finish({"score": 2})
    first.close()
    thread.join()
    assert found == [{"score": 2}]
    assert "may be alive" in said


def test_another_run_takes_over_after_three_missed_heartbeats(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.close()  # as silent as a dead one
    started = time.monotonic()
    with opened(tmp_path, owner="another run") as second:
        assert second.finished is None
    assert 0.25 < time.monotonic() - started < 5


def test_an_unwritable_root_that_was_set_fails_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidInput, match=r"checkpoint_uri = .*file.*cannot keep checkpoints"):
        resolve_place(str(tmp_path / "file"), "", "f00", "")


def test_an_unwritable_fallback_warns_and_stays_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = Said()
    place = resolve_place("", "", "f00", "minio://bucket/run/ledger", announce=said)
    assert not place.durable
    assert place.uri.startswith(str(tmp_path))
    assert "lost with this machine" in said


def test_a_fallback_lies_beside_the_artifact(tmp_path: Path) -> None:
    place = resolve_place("", "", "f00", str(tmp_path / "ledger"))
    assert place.uri == str(tmp_path / "ledger.d/default/f00")
    assert place.owner == str(tmp_path / "ledger")


def test_a_store_that_vanishes_keeps_the_state_locally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill, said = tmp_path / "spill", Said()
    settings = SETTINGS.model_copy(update={"outage_seconds": 1.0, "spill_folder": str(spill)})
    root = tmp_path / "root"
    with opened(root, said=said, settings=settings) as checkpointer:
        save(checkpointer, 1)
        checkpointer.flush()
        os.rename(root, tmp_path / "away")
        root.write_text("no folder any more")
        save(checkpointer, 2)
        with pytest.raises(StoreUnavailable, match=r"step 2 is kept in .*spill") as caught:
            checkpointer.finish({})
    assert "trying again" in said
    with opened(kept_in(caught.value)) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(2))
        checkpointer.finish({})


def test_a_training_that_ended_where_it_was_spilled_is_spilled_elsewhere(tmp_path: Path) -> None:
    root, spill = tmp_path / "root", tmp_path / "spill"
    first = kept_in(spilled(root, spill, (1, "milestone")))
    with opened(first) as checkpointer:
        checkpointer.finish({})
    second = kept_in(spilled(root, spill, (2, "milestone")))
    assert second == first.with_name(f"{first.name}-2")
    with opened(second) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(2))


@pytest.mark.parametrize(
    ("waiting", "kept"),
    [
        ([(1, "milestone"), (2, "recovery")], "states of steps 1 and 2 are"),
        ([(1, "recovery"), (2, "recovery")], "state of step 2 is"),
        ([(1, "milestone"), (2, "milestone")], "states of steps 1 and 2 are"),
    ],
)
def test_what_waits_for_a_lost_store_is_kept_with_every_milestone_and_brought_back(
    tmp_path: Path, waiting: list[Any], kept: str
) -> None:
    root, spill, said = tmp_path / "root", tmp_path / "spill", Said()
    phases = {1: 1, 2: 1, 3: 2}
    error = spilled(root, spill, *waiting, phases=phases)
    assert f"the {kept} kept in {kept_in(error)} (start again with the same" in str(error)

    last = waiting[-1][0]
    with opened(kept_in(error)) as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(last))
    with opened(root, settings=spilling(spill), said=said) as checkpointer:
        milestones = [step for step, kind in waiting if kind == "milestone"]
        found = {entry.step: entry.phase for entry in checkpointer.ledger.milestones}
        assert found == {0: None, **{step: phases[step] for step in milestones}}
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(last))
        assert checkpointer.exact
        save(checkpointer, 4)
    assert verify(str(root)) == []
    assert "kept on local disk while the store was gone, came back" in said
    assert not kept_in(error).exists()


@pytest.mark.parametrize("left", ["claims", "nothing"])
def test_what_must_be_resumed_may_wait_on_local_disk_alone(tmp_path: Path, left: str) -> None:
    root, spill = tmp_path / "root", tmp_path / "spill"
    spilled(root, spill, (1, "milestone"), begun=False)
    if left == "nothing":
        shutil.rmtree(root)
    with pytest.raises(InvalidInput, match="nothing to resume"):
        opened(root, resume="must")
    with opened(root, settings=spilling(spill), resume="must") as checkpointer:
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(1))


def test_spilled_states_that_the_store_has_by_now_are_forgotten(tmp_path: Path) -> None:
    root, spill, said = tmp_path / "root", tmp_path / "spill", Said()
    error = spilled(root, spill, (1, "milestone"), (2, "milestone"))
    with opened(root) as checkpointer:  # without the spill folder, from step 0 again
        for step in (1, 2, 3):
            save(checkpointer, step)
    before = ledgers(str(root))[0].entries
    with opened(root, settings=spilling(spill), said=said) as checkpointer:
        assert checkpointer.ledger.entries == before
    assert said == ["attempt 3 takes over from attempt 2: " + protocol.NO_WORD]
    assert not kept_in(error).exists()


@pytest.mark.parametrize(
    "wrong", ['{"phases": []}', '{"candidates": ["x"]}', '{"phases": {"x": 1}}']
)
def test_marks_that_are_none_are_told_of_and_what_they_are_beside_stays(
    tmp_path: Path, wrong: str
) -> None:
    root, spill, said = tmp_path / "root", tmp_path / "spill", Said()
    error = spilled(root, spill, (1, "milestone"))
    (marks,) = kept_in(error).glob("exp/f00/000000001-*/marks.json")
    marks.write_text(wrong)
    with opened(root, settings=spilling(spill), said=said) as checkpointer:
        assert [entry.step for entry in checkpointer.ledger.entries] == [0]
    assert "marks.json is not a record of phases" in said
    assert kept_in(error).exists()


@pytest.mark.parametrize("steps", [1, 2])
def test_nothing_comes_back_without_the_milestones_before_it(tmp_path: Path, steps: int) -> None:
    root, spill, said = tmp_path / "root", tmp_path / "spill", Said()
    error = spilled(root, spill, (1, "milestone"), (2, "milestone"))
    (damaged,) = kept_in(error).glob(f"exp/f00/{steps:09d}-*/*.safetensors")
    flip(damaged)
    with opened(root, settings=spilling(spill), said=said) as checkpointer:
        assert [e.step for e in checkpointer.ledger.entries] == list(range(steps))
    assert f"the spilled state of step {steps} in {kept_in(error)} cannot be read" in said
    assert kept_in(error).exists()


@pytest.mark.parametrize("back", [True, False], ids=["back", "gone"])
def test_training_in_a_spill_folder_takes_over_the_milestones_of_the_lost_place(
    tmp_path: Path, back: bool
) -> None:
    root, spill, said = tmp_path / "root", tmp_path / "spill", Said()
    error = spilled(root, spill, (1, "milestone"), (2, "recovery"))
    if not back:
        os.rename(root, tmp_path / "away")
        root.write_text("no folder any more")
    with opened(kept_in(error), settings=spilling(spill), said=said) as checkpointer:
        milestones = checkpointer.ledger.milestones
        restored = checkpointer.restore()
        assert restored is not None
        assert_same(restored, state(2))
        earliest = load_state(Checkpoint.of(checkpointer.ledger, milestones[0]))
        assert_same(earliest, state(0 if back else 1))
    assert [entry.step for entry in milestones] == ([0, 1] if back else [1])
    assert ("may be of another step" in said) == (not back)
    assert verify(str(kept_in(error))) == []


@pytest.mark.parametrize("fault", ["link", "mode", "file", "owner"])
def test_a_spill_folder_that_may_be_somebody_elses_is_neither_written_nor_read(
    tmp_path: Path, fault: str
) -> None:
    root, spill, said = tmp_path / "root", tmp_path / "spill", Said()
    ours = kept_in(spilled(root, spill, (1, "milestone"))).parent
    if fault == "link":
        ours.rename(tmp_path / "elsewhere")
        ours.symlink_to(tmp_path / "elsewhere")
    if fault == "mode":
        ours.chmod(0o770)
    if fault == "file":
        ours.rename(tmp_path / "elsewhere")
        ours.write_text("")
    if fault == "owner":
        if os.geteuid():
            pytest.skip("only root can give a folder away")
        os.chown(ours, 12345, -1)
    error = spilled(root, spill, (2, "milestone"), said=said)
    assert re.search(
        f"step 2 could not be kept locally either: {ours} .* with mode 0700", str(error)
    )
    assert f"states that were kept while a store was gone are not looked for: {ours}" in said
    assert [row.step for row in describe(str(root))] == [0]


def spilling(spill: Path) -> CheckpointSettings:
    return SETTINGS.model_copy(update={"outage_seconds": 0.6, "spill_folder": str(spill)})


def spilled(
    root: Path,
    spill: Path,
    *saves: Any,
    said: Said | None = None,
    phases: dict[int, int] | None = None,
    begun: bool = True,
) -> StoreUnavailable:
    """Commit step 0 if `begun`, lose the store, save, stop, find it again; return what was said."""
    with opened(root, settings=spilling(spill), said=said) as checkpointer:
        if begun and not checkpointer.ledger.entries:
            save(checkpointer, 0)
        checkpointer.flush()
        os.rename(root, root.with_name("lost"))
        root.write_text("no folder any more")
        checkpointer.mark_phases(phases or {})
        with pytest.raises(StoreUnavailable) as caught:  # noqa: PT012
            for step, kind in saves:
                save(checkpointer, step, kind)
            checkpointer.flush()
    root.unlink()
    os.rename(root.with_name("lost"), root)
    return caught.value


def kept_in(error: StoreUnavailable) -> Path:
    found = re.search(r"kept in (\S+) \(", str(error))
    assert found
    return Path(found[1])


def test_a_short_outage_goes_unnoticed_by_the_training(tmp_path: Path) -> None:
    root, away, said = tmp_path / "root", tmp_path / "away", Said()
    with opened(root, said=said) as checkpointer:
        save(checkpointer, 1)
        checkpointer.flush()
        os.rename(root, away)
        root.write_text("no folder any more")
        save(checkpointer, 2)
        time.sleep(0.3)
        root.unlink()
        os.rename(away, root)
        checkpointer.finish({})
    assert "saved after all" in said
    assert [row.step for row in describe(str(root))] == [1, 2]


def test_recovery_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"recovery_seconds": 0.2})
    with opened(tmp_path, settings=settings) as checkpointer:
        assert not checkpointer.recovery_due()
        time.sleep(0.25)
        assert checkpointer.recovery_due()
        for step in range(1, 5):
            save(checkpointer, step, "recovery")
        assert not checkpointer.recovery_due()
        assert checkpointer.report().interval_seconds == 0.2
    assert [row.step for row in describe(str(tmp_path))] == [3, 4]
    assert not ledgers(str(tmp_path))[0].milestones


def test_phases_are_written_and_their_last_milestones_kept(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"keep_last": 1})
    with opened(tmp_path, settings=settings) as checkpointer:
        for step, phases in ((1, {1: 1}), (2, {1: 1, 2: 2}), (3, {1: 1, 2: 2, 3: 2})):
            checkpointer.mark_phases(phases)
            save(checkpointer, step)
    assert [(row.step, row.phase) for row in describe(str(tmp_path))] == [(1, 1), (3, 2)]


def test_what_is_pruned_does_not_depend_on_how_fast_a_store_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time of the commit more is known of the phases than when the state was copied."""
    write, answering = CheckpointWriter.write, threading.Event()

    def slow(self: CheckpointWriter, *arguments: Any) -> None:
        answering.wait(10)
        write(self, *arguments)

    monkeypatch.setattr(CheckpointWriter, "write", slow)
    settings = SETTINGS.model_copy(update={"keep_last": 1})
    with opened(tmp_path, settings=settings) as checkpointer:
        for step, phases in ((1, {1: 1}), (2, {1: 1, 2: 2})):
            checkpointer.mark_phases(phases)
            save(checkpointer, step)
        checkpointer.mark_phases({1: 2, 2: 2})
        answering.set()
    assert [(row.step, row.phase) for row in describe(str(tmp_path))] == [(1, 1), (2, 2)]


def test_artifacts_are_small_and_lead_to_the_state(tmp_path: Path) -> None:
    ledger = trained(tmp_path, 1, 2)
    write_ledger_artifact(ledger, str(tmp_path / "ledger"))
    assert read_ledger_artifact(str(tmp_path / "ledger")) == ledger
    chosen = Checkpoint.of(ledger, ledger.milestones[0], reason="the first")
    write_checkpoint_artifact(chosen, str(tmp_path / "checkpoint"))
    assert (tmp_path / "checkpoint").stat().st_size < 1500
    again = read_checkpoint_artifact(str(tmp_path / "checkpoint"))
    assert again == chosen
    assert_same(load_state(again), state(1))


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        save(checkpointer, 1, loss=0.5, broken=float("nan"))
    assert describe(str(tmp_path))[0].metrics == {"loss": 0.5}


class Pair:
    """Two ranks in two threads that share texts as two processes would."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)
        self._texts = ["", ""]

    def ranks(self, rank: int) -> Ranks:
        def gather(text: str) -> list[str]:
            self._texts[rank] = text
            self._barrier.wait()
            gathered = list(self._texts)
            self._barrier.wait()
            return gathered

        return Ranks(rank=rank, world=2, share=lambda text: gather(text)[0], gather=gather)


def test_two_ranks_save_together_and_one_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, local = Pair(), threading.local()
    monkeypatch.setattr(Ranks, "current", classmethod(lambda cls: local.ranks))
    restored: dict[tuple[int, int], TrainingState | None] = {}

    def rank_state(rank: int) -> TrainingState:
        own = state(1)
        own.tensors["rank/rng/torch"] = torch.tensor([rank], dtype=torch.uint8)
        own.meta["rank"] = {"python": rank}
        return own

    def run(rank: int, attempt: int) -> None:
        local.ranks = pair.ranks(rank)
        with opened(tmp_path) as checkpointer:
            restored[attempt, rank] = checkpointer.restore()
            checkpointer.save(rank_state(rank), kind="milestone", step=1, epoch=0, examples=0)
            if attempt:
                checkpointer.finish({})

    for attempt in range(2):
        threads = [threading.Thread(target=run, args=(rank, attempt)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for rank in range(2):
        assert restored[0, rank] is None
        again = restored[1, rank]
        assert again is not None
        assert_same(again, rank_state(rank))
    (ledger,) = ledgers(str(tmp_path))
    assert verify(str(tmp_path)) == []
    alone = load_state(Checkpoint.of(ledger, ledger.entries[0]))
    assert_same(alone, rank_state(0))


def test_the_ledger_is_plain_json(tmp_path: Path) -> None:
    ledger = trained(tmp_path, 1)
    assert Ledger.from_bytes(ledger.to_bytes(), source="here") == ledger
    assert json.loads(ledger.to_bytes())["entries"][0]["step"] == 1


def test_a_user_id_that_no_list_knows_has_a_folder_too(monkeypatch):
    """Clusters give such ids; the name behind one cannot be looked up."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert "54321" in local_root()


def attempts(folder: Path) -> list[tuple[int, int | None, str]]:
    """(number, step it went on from, what ended it) of all attempts, from the ledger's own file."""
    ledger = ledgers(str(folder))[0]
    assert ledger.attempt
    return [(a.number, a.resumed_from, a.ended) for a in [*ledger.past, ledger.attempt]]


def test_the_ledger_remembers_every_attempt_and_what_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time()
    trained(tmp_path, 1, 2)
    last = {"started": began, "seconds": 1.0, "ended": "killed by SIGSEGV at s3://a:S3CRET@b"}
    monkeypatch.setenv("KUBESTILL_LAST_TRY", json.dumps(last))
    said = Said()
    with opened(tmp_path, said=said) as checkpointer:
        checkpointer.restore()
        save(checkpointer, 3)
        checkpointer.flush()  # beats and commits keep what was noted
        told = checkpointer.attempts
    why = "killed by SIGSEGV at s3://***@b"
    assert f"attempt 2 takes over from attempt 1: {why}" in said
    assert attempts(tmp_path) == [(1, None, why), (2, 2, "")]
    assert show(str(tmp_path))[0].before == (f"attempt 1: {why}",)
    assert [(a.number, a.resumed_from, a.ended) for a in told] == attempts(tmp_path)
    assert began <= told[0].began <= told[0].beat_at <= told[1].began <= time.time()


@pytest.mark.parametrize(
    ("owner", "age"), [("me", -60.0), ("another", 60.0)], ids=["a later pod", "another run"]
)
def test_an_end_is_not_put_down_to_an_attempt_it_was_not_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, age: float
) -> None:
    """The try that was killed had not claimed the training yet: its end says nothing of others."""
    with opened(tmp_path, owner=owner) as checkpointer:
        save(checkpointer, 1)
    last = {"started": time.time() - age, "seconds": 1.0, "ended": "killed by SIGSEGV"}
    monkeypatch.setenv("KUBESTILL_LAST_TRY", json.dumps(last))
    said = Said()
    opened(tmp_path, said=said).close()
    assert "attempt 2 takes over from attempt 1: it left no word" in said
    assert "SIGSEGV" not in attempts(tmp_path)[0][2]


def test_a_ledger_from_before_attempts_were_remembered_is_read(tmp_path: Path) -> None:
    ledger = trained(tmp_path, 1)
    assert ledger.attempt
    old = ledger.to_json()
    del old["past"]
    old["attempt"] = {
        name: old["attempt"][name]
        for name in ("number", "id", "owner", "beat", "beat_at", "beat_seconds")
    }
    content = json.dumps(old).encode()
    read = Ledger.from_bytes(content, source="old")
    assert read.past == ()
    assert read.attempt
    assert read.attempt.number == 1
    assert protocol.claim(read, ledger.attempt).past == ()
