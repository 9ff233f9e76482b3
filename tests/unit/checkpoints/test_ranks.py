"""Two real ranks: what one of them cannot read none resumes from, and they share one place."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from kubestill.runtime.checkpoints.inspection import describe, ledgers, verify

sys.path.insert(0, str(Path(__file__).parent))
import rank_worker  # noqa: E402
from forks import run_ranks  # noqa: E402


def run(root: Path, *steps: int, resume: str = "auto") -> list[dict[str, Any]]:
    """Restore with two ranks, then save `steps`; say what each one got."""
    store, run_id = str(root / "store"), uuid.uuid4().hex
    logs = [root / f"log-{run_id}-{rank}" for rank in range(2)]
    meet = f"file://{root}/meet-{run_id}"
    given = [(store, meet, rank, resume, list(steps), str(logs[rank])) for rank in range(2)]
    codes = run_ranks(rank_worker.process, given)
    assert codes == [0, 0]
    return [json.loads(log.read_text()) for log in logs]


def flip(root: Path, step: int, rank: int) -> None:
    name = f"state-{rank:05d}-of-00002.safetensors"
    (path,) = root.glob(f"store/exp/f00/{step:09d}-*/{name}")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("broken", [0, 1])
def test_what_one_rank_cannot_read_all_skip(tmp_path: Path, broken: int) -> None:
    fresh = run(tmp_path, 1, 2)
    assert [got["restored"] for got in fresh] == [None, None]
    flip(tmp_path, 2, broken)
    again = run(tmp_path)
    assert [got["restored"] for got in again] == [[1, 0], [1, 1]]
    assert all("resuming from step 1, with the same bits" in got["said"] for got in again)
    damaged = f"state-0000{broken}-of-00002.safetensors does not match its crc32c"
    (line,) = [line for line in again[0]["said"] if "is damaged" in line]
    assert damaged in line
    assert line.count("does not match") == 1
    (ledger,) = ledgers(str(tmp_path / "store"))
    assert [damaged in entry.damaged for entry in ledger.entries] == [False, True]
    assert "step 2" in ledger.notices[0].text


def test_must_resume_stops_all_ranks_where_nothing_is_whole(tmp_path: Path) -> None:
    run(tmp_path, 1, 2)
    flip(tmp_path, 1, 1)
    flip(tmp_path, 2, 0)
    refused = run(tmp_path, resume="must")
    assert [got["refused"] for got in refused] == [["resume", "must"]] * 2


def test_a_place_of_its_own_is_the_same_for_all_ranks(tmp_path: Path) -> None:
    places = []
    for _ in range(2):
        one, other = run(tmp_path, 1, resume="never")
        assert one["place"] == other["place"]
        places.append(one["place"])
    assert len(set(places)) == 2
    assert [row.step for row in describe(str(tmp_path / "store"))] == [1, 1]
    assert verify(str(tmp_path / "store")) == []
