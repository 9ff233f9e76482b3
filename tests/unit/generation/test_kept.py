"""Rows of a slow system are solved once, whoever asks for them again."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.systems import kept, solving
from kubestill.runtime.generation.systems.kept import SLOW, Keep, KeptRows, Unknown, identify
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.systems import Continuous, Domain, Output, System, load_system

SOURCE = """
import time
import numpy as np
from kubestill.systems import Choice, Continuous, Domain, Field, Output, System

def draw(unit):
    return np.repeat(unit, 4, axis=1)

class Slow(System):
    name = "slow"
    solved = 0
    seconds = {seconds}

    def __init__(self, path="", upto=0):
        wave = Field(name="wave", shape=(4,), numbers=1, draw=draw)
        x = Continuous(name="x", low=0.0, high=1.0)
        self.domain = Domain([x, wave, Choice(name="c", choices=("a", "b"))])
        self.output = Output(name="y")
        self.upto = upto

    def solve(self, inputs):
        Slow.solved += len(inputs)
        if Slow.upto and Slow.solved > Slow.upto:
            raise KeyboardInterrupt
        time.sleep(self.seconds * len(inputs))
        wave = np.stack(inputs["wave"].to_list()).sum(1)
        y = inputs["x"].to_numpy() + (inputs["c"] == "b").to_numpy() + wave
        return np.where(y > 5.0, np.nan, y){more}

    upto = 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a module with a slow system, and import it; called again it is edited."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(seconds: float = 1.2 * SLOW, more: str = "") -> Any:
        (tmp_path / "slow_system.py").write_text(SOURCE.format(seconds=seconds, more=more))
        sys.modules.pop("slow_system", None)
        # Python takes an edit within a second for the same file.
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        found = __import__("slow_system")
        sys.dont_write_bytecode = before
        return found.Slow

    yield write
    sys.modules.pop("slow_system", None)


def make(folder: Path, **settings: Any) -> Dataset:
    settings = {"rows": 30, "on_failure": "leave-out", **settings}
    generate_synthetic(
        dataset=LocalArtifact(str(folder)), system="slow_system:Slow", method="sobol", **settings
    )
    return Dataset.open(str(folder))


def test_a_retried_step_solves_no_row_twice(tmp_path: Path, module: Any) -> None:
    slow = module()
    first = make(tmp_path / "rows")
    # 8 rows are solved twice to see that it is slow.
    assert slow.solved == 16 + 30
    again = make(tmp_path / "rows")
    assert slow.solved == 46 + 16
    assert again.fingerprint == first.fingerprint
    assert again.provenance["left_out"] == first.provenance["left_out"]
    assert again.provenance["left_out"]["rows"] > 0
    # Below a root of the user's own, other steps find them too.
    root = str(tmp_path / "root")
    make(tmp_path / "one", checkpoint_uri=root)
    solved = slow.solved
    make(tmp_path / "two", checkpoint_uri=root, rows=34)
    assert slow.solved == solved + 16 + 4


def test_rows_that_an_interrupted_step_has_solved_are_kept(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solving, "_LONGEST", 6 * SLOW)
    monkeypatch.setattr(kept, "_EVERY", 0.0)
    slow = module()
    slow.upto = 16 + 20
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rows")
    before = slow.solved
    # Written as they were solved: a machine that is lost writes nothing at its end.
    assert len(list(tmp_path.glob("rows.d/solved/*/*.rows"))) >= 3
    slow.upto = 0
    whole = make(tmp_path / "rows")
    assert slow.solved <= before + 16 + 30 - 10
    assert whole.fingerprint == make(tmp_path / "other").fingerprint


def test_an_edited_system_is_another_one(tmp_path: Path, module: Any) -> None:
    root, slow = str(tmp_path / "root"), module()
    first = make(tmp_path / "one", checkpoint_uri=root)
    edited = module(more=" + 1.0")
    second = make(tmp_path / "two", checkpoint_uri=root)
    assert edited.solved == slow.solved
    assert second.fingerprint != first.fingerprint


def test_rows_that_the_system_does_not_answer_now_are_not_used(
    tmp_path: Path, module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A declared version stands for everything: one that is forgotten is found out."""
    root, slow = str(tmp_path / "root"), module(more="\n\n    version = '1'")
    make(tmp_path / "one", checkpoint_uri=root)
    same = module(more="\n\n    version = '1'  # a comment")
    make(tmp_path / "two", checkpoint_uri=root)
    assert same.solved == 16
    changed = module(more=" + 1.0\n\n    version = '1'")
    capsys.readouterr()
    third = make(tmp_path / "three", checkpoint_uri=root)
    assert changed.solved == slow.solved
    assert "is not what the system answers now: it is not used" in capsys.readouterr().out
    assert float(np.min(third.to_pandas()["y"].to_numpy())) >= 1.0


def test_a_timeout_is_tried_again(tmp_path: Path) -> None:
    class Late(System):
        name, late = "late", True

        def __init__(self) -> None:
            self.domain = Domain([Continuous(name="x", low=0.0, high=1.0)])
            self.output = Output(name="y")

        def solve(self, inputs: pd.DataFrame) -> np.ndarray:
            x = inputs["x"].to_numpy()
            if self.late and (x > 0.5).any():
                raise TimeoutError("took too long")
            return np.where(x < 0.1, np.nan, x)

    asked = pd.DataFrame({"x": [0.05, 0.2, 0.7]})
    late = solving.Solving(Late(), "leave-out")
    late.kept = KeptRows(str(tmp_path), ["x"], 1)
    assert np.isnan(late(asked)[:, 0]).tolist() == [True, False, True]
    assert len(late.kept) == 2
    late.system.late = False  # pyright: ignore
    assert np.isnan(late(asked)[:, 0]).tolist() == [True, False, False]
    assert (late.reused, len(late.kept)) == (2, 3)


def test_a_fast_system_keeps_nothing(tmp_path: Path, module: Any) -> None:
    module(seconds=0.0)
    make(tmp_path / "rows", checkpoint_uri=str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_what_a_system_is_covers_code_arguments_and_files(tmp_path: Path, module: Any) -> None:
    module()
    data = tmp_path / "data.csv"
    data.write_text("1")

    def known(**args: Any) -> str | Unknown:
        return identify(load_system("slow_system:Slow", args), args)

    seen = [known(), known(path="nothing"), known(path=str(data))]
    data.write_text("2")
    seen.append(known(path=str(data)))
    (tmp_path / "helper.py").write_text("A = 1\n")
    module(more="\n\n    import helper")
    seen.append(known())
    (tmp_path / "helper.py").write_text("A = 2\n")
    seen.append(known())
    sys.modules.pop("helper", None)
    assert len(set(seen)) == len(seen)
    assert known() == seen[-1]
    for args, why in (
        ({"path": str(tmp_path)}, "is a folder of files"),
        ({"path": "gs://bucket/data"}, "may hold something else tomorrow"),
    ):
        assert why in str(known(**args))
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec(SOURCE.format(seconds=0, more=""), namespace)
    assert "no source file" in str(identify(namespace["Slow"](), {}))


def test_damaged_rows_are_solved_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = pd.DataFrame({"x": np.arange(5.0)})
    answers = np.arange(10.0).reshape(5, 2)
    answers[3] = np.nan
    rows = KeptRows(str(tmp_path), ["x"], 2)
    rows.add(inputs, answers, ["lost"])
    rows.flush()
    found, known, reasons = KeptRows(str(tmp_path), ["x"], 2).find(inputs)
    assert known.all()
    assert np.array_equal(found, answers, equal_nan=True)
    assert reasons == ["lost"]
    (segment,) = os.listdir(tmp_path)
    content = (tmp_path / segment).read_bytes()
    for damaged in (content[:-3], content[:9], b"x" + content[1:], content + b"0"):
        (tmp_path / segment).write_bytes(damaged)
        assert len(KeptRows(str(tmp_path), ["x"], 2)) == 0
        assert "are solved again" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path: Path, module: Any) -> None:
    module()
    (tmp_path / "file").write_text("")
    with Keep(str(tmp_path / "file"), load_system("slow_system:Slow"), {}) as keep:
        said = keep.open(1.0, pd.DataFrame(), np.zeros((0, 1)))
    assert keep.rows is None
    assert said.startswith("solved rows are not kept: ")
