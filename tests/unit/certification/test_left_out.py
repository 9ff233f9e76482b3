"""Certificates of solvers that fail on part of the domain: they hold for the rest, and say so."""

import json
from typing import Any

import numpy as np
import pytest
from certified_parts import SYSTEMS, examine, make_dataset, make_model, run, system
from certified_systems import Partly

from kubestill.errors import InvalidInput
from kubestill.runtime.certification import read_certificate
from kubestill.runtime.datasets.manifest import Dataset

LEAVE: dict[str, Any] = {"on_failure": "leave-out"}
SHARE = 0.1 + 0.1 / 2
"""Of the domain of `Partly`, on which it fails."""


QUIET: dict[str, Any] = {"told": {"system_args": {"raising": False}}, **LEAVE}
"""Gives NaN wherever it fails."""


def test_a_verdict_is_limited_to_what_the_solver_answers(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Partly"), method="sobol", rows=2000, **LEAVE)
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = run(tmp_path, model, dataset, tolerance=1e-5, samples=1000, **LEAVE)
    assert made["verdict"] == "certified: sampled, where the solver answers", made["reason"]
    assert "% of the domain where the solver answers is within it" in made["reason"]
    assert made["statuses"]["the dataset covers the domain"] == "shown"
    assert made["statuses"]["the solver answers every input"] == "not shown"
    (said,) = [c["said"] for c in made["conditions"] if "answers every" in c["name"]]
    assert "raises ArithmeticError: did not converge" in said
    assert "within x 0.9" in said
    assert "Of these inputs the certificate says nothing. With 95% confidence they are at" in said
    found = made["excluded"]
    assert found["share"] == pytest.approx(SHARE, abs=0.03)
    assert found["share"] < found["bound"] < SHARE + 0.06
    assert made["errors"]["off_grid"]["rows"] == round(1000 * (1 - found["share"]))
    raising = {r["reason"].partition(":")[0]: r for r in found["left_out"]["regions"]}
    assert raising["raises ArithmeticError"]["box"]["x"]["low"] == pytest.approx(0.9, abs=0.01)
    assert raising["gives what is not finite"]["box"]["y"]["high"] == pytest.approx(0, abs=0.1)
    lines = (tmp_path / "out" / "summary").read_text().splitlines()
    assert lines[0].endswith("certified: sampled, where the solver answers")
    assert "Certified: sampled, where the solver answers; it fails on " in lines[2]
    assert "% of that part of the domain is within 1e-05" in lines[2]
    form = json.loads((tmp_path / "out" / "certificate" / "certificate.json").read_text())
    assert read_certificate(form).to_json() == form


def test_points_of_a_grid_on_which_the_solver_fails_are_no_holes(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Partly", raising=False), **QUIET)
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-5, **LEAVE)
    assert made["verdict"] == "certified: sampled, where the solver answers", made["reason"]
    missing = 441 - Dataset.open(dataset.path).rows
    (said,) = [c["said"] for c in made["conditions"] if "covers" in c["name"]]
    assert f"21 x 21, but for {missing} on which the solver fails" in said
    assert made["solves"]["planned"]["missing points of the grid"] == missing


def test_without_being_asked_to_leave_them_out_it_stops(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Partly"), method="sobol", rows=500, **LEAVE)
    model = make_model(tmp_path / "model", dataset, "Bent")
    with pytest.raises(InvalidInput, match="on_failure='leave-out'"):
        examine(model, dataset, tolerance=1e-5)


def test_a_hole_where_the_solver_answers_is_still_one(tmp_path):
    """The part that is left out excuses no row that is missing elsewhere."""
    for method, kept in (
        ("sobol", lambda f: f[(f["x"] < 0.4) | (f["x"] > 0.55)]),
        ("grid", lambda f: f.drop(index=f.index[100:103])),
    ):
        folder = tmp_path / method
        dataset = make_dataset(
            folder / "rows",
            system("Partly", raising=False),
            method=method,
            rows=3000,
            change=kept,
            **QUIET,
        )
        model = make_model(folder / "model", dataset, "Bent")
        made = examine(model, dataset, tolerance=0.1, samples=2000, **LEAVE)
        assert made["failed"] == {"holes"}
        assert made["verdict"] == "refused"


def test_stored_labels_where_the_solver_fails_are_not_its_own(tmp_path):
    told = {"system": f"{SYSTEMS}:Partly"}
    dataset = make_dataset(tmp_path / "rows", system("Plane"), told=told)
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-5, **LEAVE)
    assert made["failed"] == {"noisy"}
    fails = int(np.isnan(Partly(raising=False).solve(Dataset.open(dataset.path).to_pandas())).sum())
    assert f"or none: on {fails} the solver fails" in made["reason"]


def test_every_point_that_has_an_answer_is_enumerated(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Holey"), **LEAVE)
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-4, **LEAVE)
    assert made["verdict"] == "certified: enumerated, where the solver answers", made["reason"]
    assert made["errors"]["data"]["rows"] == 400 - 13 * 13
    assert made["headline"].startswith(
        "Certified: enumerated, where the solver answers; it fails on 169 of 400 inputs. "
    )
    assert "at all 231 points that it answers never off by more than" in made["headline"]
    assert made["excluded"]["share"] == made["excluded"]["bound"] == 169 / 400
    (region,) = made["excluded"]["left_out"]["regions"]
    assert {n: (s["low"], s["high"]) for n, s in region["box"].items()} == {
        "a": (7.0, 19.0),
        "b": (7.0, 19.0),
    }
    (said,) = [c["said"] for c in made["conditions"] if "covers" in c["name"]]
    assert (
        said
        == "All 400 inputs there are, 20 x 20, but for 169 on which the solver fails: complete."
    )


def test_a_solver_that_answers_everywhere_gets_the_whole_verdict(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    made = examine(
        make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-5, **LEAVE
    )
    assert made["verdict"] == "certified: sampled"
    assert "excluded" not in made
    assert made["statuses"]["the solver answers every input"] == "shown"


def test_nothing_is_proven_where_the_solver_fails(tmp_path):
    dataset = make_dataset(
        tmp_path / "rows", system("Partly", raising=False), method="sobol", rows=1000, **QUIET
    )
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-5, assurance="proven", **LEAVE)
    assert made["failed"] == {"assurance"}
    assert "the solver fails on a part" in made["reason"]


@pytest.mark.parametrize("raising", [True, False], ids=["raises", "not-a-number"])
def test_the_share_that_is_left_out_is_bounded_as_often_as_it_says(tmp_path, raising):
    """The truth is known; and what a certificate says it solved is what the solver got."""
    args = {"raising": raising}
    dataset = make_dataset(
        tmp_path / "rows",
        system("Partly", **args),
        method="sobol",
        rows=500,
        told={"system_args": args},
        **LEAVE,
    )
    model = make_model(tmp_path / "model", dataset, "Bent")
    held = []
    for seed in range(3):
        Partly.rows = 0
        made = examine(model, dataset, samples=100, hunts=1, seed=seed, confidence=0.99, **LEAVE)
        held.append(made["excluded"]["bound"] >= SHARE)
        assert made["solves"]["done"] == Partly.rows
        if not raising:
            assert Partly.rows <= sum(made["solves"]["planned"].values())
    assert all(held)
    assert np.isfinite(made["worst"]["error"])
