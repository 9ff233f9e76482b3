"""Shards solve the points of a certificate that do not depend on the surrogate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified_parts import SYSTEMS, make_model, system
from certified_systems import Counting

from kubestill.errors import InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.certification import CertificateSettings
from kubestill.runtime.certification.ahead import random_points, solve_ahead
from kubestill.runtime.certification.certify import certify
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.systems import kept, solving
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.gather_shards import gather_shards
from kubestill.runtime.steps.generate_synthetic import generate_synthetic

PROBE = 16
ARGS = {"seconds": 0.009}
"""Slow enough to be kept, and for a certificate to probe it with few rows."""


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "solved", 0)
    monkeypatch.setattr(Counting, "upto", 0)


def shard(folder: Path, number: int, **given: Any) -> str:
    dataset = LocalArtifact(str(folder / f"shard{number}"))
    given = {"rows": 30, "samples": 100, "checkpoint_uri": str(folder / "root"), **given}
    name = f"{SYSTEMS}:Weighed"
    (uri,) = generate_synthetic(
        dataset=dataset, system=name, system_args=ARGS, shard=number, shards=2, **given
    )
    return uri


@pytest.mark.parametrize("assurance", ["auto", "sampled"])
@pytest.mark.parametrize("name", ["Plane", "Sum"])
def test_every_point_is_solved_by_one_shard(tmp_path: Path, name: str, assurance: Any) -> None:
    """A finite domain has all its points, any other the certificate's own random ones."""
    solver = system(name)
    settings = CertificateSettings(samples=250, seed=3, assurance=assurance)
    probe = solver.domain.at(np.full((1, 2), 0.5))
    said = []
    with Keep(str(tmp_path), solver, {}) as keep:
        keep.open(1.0, probe, np.reshape(solver.solve(probe), (-1, 1)))
        for number in range(3):
            said.append(
                solve_ahead(solver, settings, keep, rows=400, shard=number, shards=3).split()
            )
    enumerated = name == "Sum" and assurance == "auto"
    if enumerated:
        inputs = solver.domain.grid(np.arange(400), solver.domain.points(rows=400))
    else:
        inputs = solver.domain.at(random_points(solver.domain, 0, 250, seed=3))
    assert keep.rows
    assert keep.rows.find(inputs)[1].all()
    counts = [int(words[0]) for words in said]
    if enumerated or name == "Plane":
        # The probe is one of the points of the grid.
        assert sum(counts) == (399 if enumerated else 250)
        assert max(counts) - min(counts) <= 1 + enumerated


def test_a_certificate_solves_nothing_that_its_shards_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shard is killed among these points: no row of it, and none of the others, is lost."""
    monkeypatch.setattr(solving, "_LONGEST", 0.08)
    monkeypatch.setattr(kept, "_EVERY", 0.0)
    uris = [shard(tmp_path, 0)]
    # Rows are cut in blocks of 8,192, all of them the other shard's; points one by one.
    assert Counting.solved == PROBE + 50
    assert "50 points solved for the certificate\n" in capsys.readouterr().out
    Counting.upto = Counting.solved + PROBE + 30 + 30
    with pytest.raises(KeyboardInterrupt):
        shard(tmp_path, 1)
    lost = 8
    Counting.solved = Counting.upto = 0
    uris.append(shard(tmp_path, 1))
    assert PROBE < Counting.solved <= PROBE + 20 + lost
    assert "more had been solved before" in capsys.readouterr().out
    rows = LocalArtifact(str(tmp_path / "rows"))
    gather_shards(uris=uris, dataset=rows)
    Counting.solved = 0
    solver = system("Weighed", **ARGS)
    with Keep(str(tmp_path / "root"), solver, ARGS) as keep:
        found = certify(
            load_model(make_model(tmp_path / "model", rows, "Bent").path),
            Dataset.open(rows.path),
            solver,
            CertificateSettings(samples=100, hunts=0, batch=2),
            weights=1000,
            keep=keep,
        )
    made = found.certificate.solves
    assert made
    # Timing, and second solutions of labels, are of this step.
    anew = made.planned["the probe"] + made.planned["labels"] // 2 + made.planned["timing"]
    assert made.done == Counting.solved == anew
    assert made.reused >= 30 + 100


def test_points_are_left_to_a_certificate_that_would_not_find_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path, 1, checkpoint_uri="")
    assert Counting.solved == PROBE + 30
    assert "points are left to it: it looks below `checkpoint_uri` alone" in capsys.readouterr().out


def test_what_is_wrong_with_the_certificate_is_told_before_a_row_is_solved(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        shard(tmp_path, 0, assurance="certain", certificate_settings={"hunt": 3, "seed": 1})
    message = str(caught.value)
    for part in ("assurance", "certificate_settings.hunt", "certificate_settings.seed"):
        assert part in message
    assert not Counting.solved
    with pytest.raises(InvalidInput, match="samples = 9: they are points of a system"):
        generate_synthetic(dataset=LocalArtifact(str(tmp_path / "rows")), samples=9)
