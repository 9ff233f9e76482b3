"""What a certificate grants, and everything that it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from certified_parts import SYSTEMS, examine, make_dataset, make_model, run, system
from certified_systems import Counting

from kubestill.errors import CorruptData, InvalidInput, Refused
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.certification import CertificateSettings, read_certificate
from kubestill.runtime.certification.certify import certify
from kubestill.runtime.certification.errors import off_grid, sampled_errors
from kubestill.runtime.certification.exceptions import Exceptions
from kubestill.runtime.certification.plan import plan_solves
from kubestill.runtime.certification.proof import prove
from kubestill.runtime.certification.truth import Truth, answers
from kubestill.runtime.certification.views import cases, error_map, image, lines
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset
from kubestill.runtime.generation.systems import load_system
from kubestill.runtime.generation.systems.kept import Keep
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.certify_surrogate import certify_surrogate


def noisy(frame):
    return frame.assign(z=frame["z"] + np.random.default_rng(0).normal(0, 0.01, len(frame)))


def holed(frame):
    return frame.drop(index=frame.index[100:103])


def doubled(frame):
    frame = frame.loc[[*frame.index, 7]]
    return frame.assign(z=[*frame["z"][:-1], frame["z"].iloc[-1] + 0.5])


def cornerless(frame):
    return frame[~((frame["x"] > 0.7) & (frame["y"] > 0.3))]


def slabless(frame):
    return frame[(frame["x"] < 0.4) | (frame["x"] > 0.6)]


def test_a_surrogate_that_is_right_is_certified(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    made = run(tmp_path, make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-5)
    assert made["verdict"] == "certified: sampled", made["reason"]
    assert set(made["statuses"].values()) == {"shown"}
    assert made["errors"]["data"]["max"] < 1e-5
    assert made["errors"]["off_grid"]["rows"] == 2000
    # Packed, the labels of the grid are smaller than as they are.
    assert made["size"]["table_bytes"] < 21 * 21 * 4
    assert "packed by" in made["size"]["table"]
    assert made["speed"]["ratio"] > 0
    assert made["metrics"]["size_ratio"] == made["size"]["ratio"]


@pytest.mark.parametrize(
    ("name", "made_by", "told", "change", "method", "code"),
    [
        pytest.param("Plane", {}, {}, noisy, "grid", "noisy", id="noisy-labels"),
        pytest.param("Stochastic", {}, {}, None, "grid", "stochastic", id="stochastic-solver"),
        pytest.param("Plane", {}, {}, holed, "grid", "holes", id="a-grid-with-holes"),
        pytest.param("Plane", {}, {}, doubled, "grid", "conflicts", id="conflicting-duplicates"),
        pytest.param(
            "Plane", {}, {"far": 1.5}, None, "sobol", "extrapolated", id="extrapolated-domain"
        ),
        pytest.param("Plane", {}, {"far": 1.5}, None, "grid", "holes", id="extrapolated-grid"),
        pytest.param("Plane", {}, {"far": 0.5}, None, "grid", "outside", id="smaller-domain"),
        pytest.param("Plane", {}, {}, cornerless, "random", "holes", id="an-empty-corner"),
        pytest.param("Plane", {}, {}, slabless, "random", "holes", id="an-empty-slab"),
        pytest.param("Wrong", {}, {}, None, "grid", "inaccurate", id="a-solver-that-is-off"),
    ],
)
def test_it_refuses(tmp_path, name, made_by, told, change, method, code):
    dataset = make_dataset(
        tmp_path / "rows",
        system(name, **made_by),
        method=method,
        rows=3000,
        change=change or (lambda frame: frame),
        told={"system_args": told},
    )
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=0.1, samples=500)
    assert made["verdict"] == "refused"
    assert code in made["failed"]
    # A noisy solver cannot repeat its labels either.
    assert made["failed"] <= {code, "noisy", "error"} if name == "Stochastic" else {code}


def test_strict_fails_the_step_and_says_which_condition(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"), change=holed)
    model = make_model(tmp_path / "model", dataset, "Bent")
    with pytest.raises(Refused, match="holes: 3 of the 441 points of the grid 21 x 21"):
        run(tmp_path, model, dataset, strict=True)
    assert (tmp_path / "out" / "certificate" / "certificate.json").exists()


def test_an_error_between_the_points_of_the_grid_is_found(tmp_path):
    # Four points along x: the bump in the middle lies between two of them.
    dataset = make_dataset(tmp_path / "rows", system("Plane"), points=4)
    model = make_model(tmp_path / "model", dataset, "Bent", bump=0.5)
    made = examine(model, dataset, tolerance=0.01)
    errors = made["errors"]
    assert errors["data"]["max"] < 0.01 < errors["off_grid"]["max"] <= errors["hunted"]["max"]
    assert made["failed"] == {"error"}
    assert made["worst"]["found"] == "between the rows of the dataset"
    assert made["worst"]["inputs"]["x"] == pytest.approx(0.5, abs=0.01)
    apart = abs(made["worst"]["solution"] - made["worst"]["surrogate"])
    assert apart == pytest.approx(made["worst"]["error"], rel=1e-6)


def test_without_a_reference_freedom_from_noise_is_not_shown(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Ramp"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-5)
    assert made["verdict"] == "certified: sampled"
    assert made["statuses"]["labels are free of noise"] == "not shown"
    assert made["statuses"]["labels can be reproduced"] == "shown"


def test_roundings_by_the_batch_are_no_chance(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("BatchRounding"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-5)
    assert made["verdict"] == "certified: sampled", made["reason"]
    (seen,) = [c["said"] for c in made["conditions"] if "deterministic" in c["name"]]
    assert "roundings" in seen


@pytest.mark.parametrize("statistic", ["max", "p999", "mean"])
def test_the_tolerance_is_held_against_the_statistic(tmp_path, statistic):
    dataset = make_dataset(tmp_path / "rows", system("Plane"), points=30)
    model = make_model(tmp_path / "model", dataset, "Bent", bump=0.1)
    # 0.06 is above the mean and below the largest error.
    made = examine(model, dataset, tolerance=0.06, statistic=statistic)
    verdict = "certified: sampled" if statistic == "mean" else "refused"
    assert made["verdict"] == verdict, made["reason"]


def test_without_a_tolerance_it_is_measured(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent", bump=9.0), dataset)
    assert made["verdict"] == "measured"
    assert made["statuses"]["the error is within the tolerance"] == "not shown"
    assert made["headline"].startswith("Measured. A network of 3 numbers stands for plane: the ")
    assert "never" not in made["headline"] + made["reason"]


def test_a_table_agrees_in_every_row(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Parity"))
    made = examine(make_model(tmp_path / "model", dataset, "Even"), dataset)
    assert made["verdict"] == "certified: enumerated", made["reason"]
    assert made["assurance"] == "enumerated"
    assert made["errors"]["data"]["disagreements"] == 0
    assert "off_grid" not in made["errors"]
    assert made["about"]["coverage"] == "complete"


def test_a_table_that_disagrees_is_refused_unless_its_exceptions_are_written_down(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Parity"), change=lambda f: f.iloc[::-1])
    model = make_model(tmp_path / "model", dataset, "Even", wrong=3)
    bare = examine(model, dataset)
    assert bare["failed"] == {"error"}
    assert bare["errors"]["data"]["disagreements"] == 60
    made = run(tmp_path, model, dataset, exceptions=True)
    assert made["verdict"] == "certified: enumerated", made["reason"]
    stored = (tmp_path / "out" / "certificate" / "exceptions.bin").read_bytes()
    assert made["size"]["exceptions_bytes"] == len(stored) > 0
    assert made["size"]["surrogate_bytes"] == made["size"]["weights_bytes"] + len(stored)
    # They name points, not rows: in whatever order a user asks, every answer is right.
    asked = system("Parity").domain.grid(
        np.random.default_rng(0).permutation(400), {"a": 20, "b": 20}
    )
    predictor = load_model(model.path)
    raw = decode_features(asked, predictor.layout)
    told = Exceptions.from_bytes(stored).correct(raw, answers(predictor, raw)[:, 0].astype(int))
    right = system("Parity").solve(asked) == "yes"
    assert told.tolist() == right.astype(int).tolist()


def test_a_table_of_ones_own_is_taken_at_its_word_or_refused(tmp_path):
    rows = make_dataset(tmp_path / "rows", system("Parity"), told={"system": ""})
    model = make_model(tmp_path / "model", rows, "Even")
    made = examine(model, rows)
    assert made["verdict"] == "certified: enumerated"
    assert made["statuses"]["the dataset covers the domain"] == "not shown"
    some = make_dataset(
        tmp_path / "some", system("Plane"), method="random", rows=50, told={"system": ""}
    )
    other = make_model(tmp_path / "other", some, "Bent")
    assert examine(other, some)["failed"] == {"incomplete"}


@pytest.mark.parametrize(
    ("name", "options", "verdict"),
    [
        pytest.param("Parity", {}, "certified: enumerated", id="auto-on-a-finite-domain"),
        pytest.param("Parity", {"assurance": "enumerated"}, "certified: enumerated", id="as-asked"),
        pytest.param(
            "Parity",
            {"assurance": "sampled", "tolerance": 0.01},
            "certified: sampled",
            id="sampled-although-finite",
        ),
        pytest.param(
            "Parity",
            {"enumerate_rows": 399, "tolerance": 0.01},
            "certified: sampled",
            id="too-large-to-enumerate",
        ),
        pytest.param(
            "Parity",
            {"enumerate_rows": 399, "tolerance": 0.01, "assurance": "enumerated"},
            "refused",
            id="too-large-and-asked-for",
        ),
        pytest.param("Plane", {"tolerance": 1e-4}, "certified: sampled", id="auto-on-a-continuum"),
        pytest.param(
            "Plane", {"tolerance": 1e-4, "assurance": "enumerated"}, "refused", id="no-enumeration"
        ),
        pytest.param("Plane", {"tolerance": 1e-4, "samples": 0}, "refused", id="nothing-sampled"),
    ],
)
def test_less_than_was_asked_for_is_refused(tmp_path, name, options, verdict):
    dataset = make_dataset(tmp_path / "rows", system(name))
    model = make_model(tmp_path / "model", dataset, "Even" if name == "Parity" else "Bent")
    made = examine(model, dataset, **options)
    assert made["verdict"] == verdict, made["reason"]
    if verdict == "refused":
        assert made["failed"] == {"assurance"}
        assert made["reason"].startswith("assurance: ")


def test_a_proof_that_cannot_be_had_is_refused_with_the_reason(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-4, assurance="proven")
    assert made["verdict"] == "refused"
    assert made["failed"] == {"assurance"}
    assert made["assurance"] == "sampled"
    assert "proven was asked for; what was reached is sampled. " in made["reason"]


def test_a_point_above_the_proven_bound_contradicts_the_proof(tmp_path):
    """A proof finds an enclosure right where it looks; the samples of a certificate see more."""
    dataset = make_dataset(tmp_path / "rows", system("Lying"))
    model = make_model(tmp_path / "model", dataset, "linear")
    alone = prove(load_model(model.path), system("Lying"), tolerance=0.1)
    assert alone.status == "proven"
    made = examine(model, dataset, assurance="proven", samples=20_000, tolerance=0.1)
    assert made["verdict"] == "refused"
    assert "proven" not in made["errors"]
    assert "but a point errs by 1: what it rests on does not hold" in made["reason"]


def test_a_proof_on_declared_slopes_says_so_in_every_place(tmp_path):
    """Nobody who reads the verdict alone takes it for a proof that rests on nothing."""
    dataset = make_dataset(tmp_path / "rows", system("Declared"))
    model = make_model(tmp_path / "model", dataset, "linear")
    settings = {"batch": 4, "proof_seconds": 5}
    made = run(tmp_path, model, dataset, assurance="proven", tolerance=0.2, settings=settings)
    declared = "if what was declared holds"
    assert made["verdict"] == f"certified: proven, {declared}"
    assert declared in made["reason"]
    assert made["errors"]["proven"]["conditional"]
    shown = next(c for c in made["conditions"] if c["name"].startswith("the assurance"))
    assert f"{declared}: Conditional: the slopes of declared are at most what its" in shown["said"]
    assert f"Certified: proven, {declared}. A network" in made["html"]
    assert f"proven bound, {declared}" in made["html"]
    for page in ("summary", "report"):
        assert (tmp_path / "out" / page).read_text().count(declared) >= 3
    form = json.loads((tmp_path / "out" / "certificate" / "certificate.json").read_text())
    assert read_certificate(form).verdict == made["verdict"]
    form["conditions"][-1]["status"] = "not shown"
    assert read_certificate(form).verdict == f"measured, {declared}"


def test_an_enclosure_that_a_solution_leaves_is_refused_with_the_point(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Narrow"))
    model = make_model(tmp_path / "model", dataset, "linear")
    made = examine(model, dataset, assurance="proven", tolerance=0.1)
    assert made["failed"] == {"assurance"}
    found = re.search(r"system\.enclose = \{'x': ([\d.e-]+), 'y': ([-\d.e]+)\}", made["reason"])
    assert found, made["reason"]
    x, y = map(float, found.groups())
    assert (
        f"narrow solves it to [{2 * x + y}], outside of what its `enclose` says" in made["reason"]
    )
    assert "proof_seconds" not in made["reason"]


def test_too_few_points_for_a_quantile_are_told_from_an_error(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, statistic="p999", tolerance=0.1)
    assert made["reason"].endswith(
        "500 random points are too few to bound the 99.9th percentile: it takes 2,995. Give more "
        "`samples`, or another `statistic`."
    )


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.6])
def test_classes_are_compared_between_the_rows(tmp_path, tolerance):
    """The stored rows all agree; between them every second point does not."""
    dataset = make_dataset(tmp_path / "rows", system("Side"), method="sobol", rows=2048)
    model = make_model(tmp_path / "model", dataset, "Constant")
    made = examine(model, dataset, tolerance=tolerance, samples=2000)
    off = made["errors"]["off_grid"]
    assert off["mean"] == pytest.approx(0.5, abs=0.05)
    assert (
        made["verdict"] == {0.0: "measured", 0.01: "refused", 0.6: "certified: sampled"}[tolerance]
    )
    if tolerance:
        assert off["above_tolerance"]["bound"] > off["mean"]
    with pytest.raises(InvalidInput, match="exceptions = True: they name points of a finite"):
        run(tmp_path, model, dataset, exceptions=True, tolerance=tolerance)


def test_a_solver_gets_the_same_types_when_its_rows_are_solved_again(tmp_path):
    """Of float32 inputs, sin(3 x) y is another number; only float64 has its bits."""
    dataset = make_dataset(tmp_path / "rows", system("Typed"), method="sobol", rows=512)
    made = examine(make_model(tmp_path / "model", dataset, "Bent"), dataset)
    assert made["statuses"]["labels can be reproduced"] == "shown", made["reason"]
    assert made["verdict"] == "measured"


def test_the_error_of_a_table_is_held_against_its_own_numbers(tmp_path):
    """A network that answers with what float32 holds is wrong by what that loses."""
    path = tmp_path / "step.parquet"
    pd.DataFrame({"key": np.arange(512.0), "y": 1.7e9 + np.arange(512) * 20.0}).to_parquet(path)
    args = {"source": str(path), "target": "y"}
    dataset = make_dataset(
        tmp_path / "rows",
        load_system("table", args),
        points=None,
        told={"system": "table", "system_args": args},
    )
    model = make_model(tmp_path / "model", dataset, "Stored", path=str(path))
    exact = pd.read_parquet(path)["y"].to_numpy()
    told = load_model(model.path).logits(np.arange(512, dtype=np.float32)[:, None])
    truth = float(np.abs(exact - told[:, 0].astype(np.float64)).max())
    made = examine(model, dataset, tolerance=1.0)
    assert truth >= np.abs(exact - exact.astype(np.float32)).max() > 60
    assert made["errors"]["data"]["max"] == truth
    assert made["failed"] == {"error"}
    # Without the system only the stored labels are known; what they may have lost is added.
    bare = make_dataset(
        tmp_path / "bare",
        load_system("table", args),
        points=None,
        told={"system": "", "system_args": {}},
    )
    assert examine(model, bare, tolerance=1.0)["errors"]["data"]["max"] >= truth


def test_answers_that_are_no_numbers_are_named(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    model = make_model(tmp_path / "model", dataset, "Bent", bump=1e39)
    with pytest.raises(InvalidInput, match="answers 441 rows with NaN or infinity"):
        examine(model, dataset)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("Nan", "gives what is not finite in", id="not-a-number"),
        pytest.param("Raises", "raises ArithmeticError: did not converge in 1 of", id="raises"),
    ],
)
def test_a_solver_that_fails_somewhere_is_named_with_the_point(tmp_path, name, message):
    told = {"system": f"{SYSTEMS}:{name}"}
    dataset = make_dataset(tmp_path / "rows", system("Plane"), told=told)
    model = make_model(tmp_path / "model", dataset, "Bent")
    with pytest.raises(InvalidInput, match=f"`solve` {message} .*'x': 0.(89|9)"):
        examine(model, dataset)


@pytest.mark.parametrize(("where", "width", "close"), [("corner", 12, 0.8), ("face", 5, 0.97)])
def test_the_worst_point_is_found_on_the_edge_of_the_domain(tmp_path, where, width, close):
    """Random points see a fraction of it: in many dimensions most of a domain is far inside."""
    cube = system("Corner", width=width)
    told = {"system_args": {"width": width}}
    dataset = make_dataset(tmp_path / "rows", cube, method="sobol", rows=4096, told=told)
    model = make_model(tmp_path / "model", dataset, "Spike", where=where)
    raw = np.full((1, width), 1.0 if where == "corner" else 0.5, np.float32)
    raw[0, 0] = 1.0
    largest = abs(float(load_model(model.path).logits(raw)[0, 0]))
    made = examine(model, dataset, samples=2000, tolerance=0.5)
    errors = made["errors"]
    assert errors["off_grid"]["max"] < 0.7 * largest
    assert errors["hunted"]["max"] > close * largest
    assert made["failed"] == {"error"}


def test_a_mean_is_held_against_its_bound_and_not_against_what_was_observed(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"), points=30)
    model = make_model(tmp_path / "model", dataset, "Bent", bump=0.1)
    off = examine(model, dataset, statistic="mean", tolerance=1.0)["errors"]["off_grid"]
    between = (off["mean"] + off["mean_bound"]) / 2
    assert examine(model, dataset, statistic="mean", tolerance=between)["failed"] == {"error"}
    made = examine(model, dataset, statistic="mean", tolerance=1.001 * off["mean_bound"])
    assert made["verdict"] == "certified: sampled", made["reason"]


def test_a_share_of_classes_is_held_against_its_bound(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Side"), method="sobol", rows=2048)
    model = make_model(tmp_path / "model", dataset, "Constant")
    errors = examine(model, dataset, tolerance=0.9)["errors"]
    observed = max(errors["off_grid"]["mean"], errors["data"]["mean"])
    bound = errors["off_grid"]["above_tolerance"]["bound"]
    assert observed < bound
    assert examine(model, dataset, tolerance=(observed + bound) / 2)["failed"] == {"error"}
    assert examine(model, dataset, tolerance=bound)["verdict"] == "certified: sampled"


def test_a_sampled_share_holds_as_often_as_it_says(tmp_path):
    """The truth is known: the share of the domain in which the bump exceeds the tolerance."""
    dataset = make_dataset(tmp_path / "rows", system("Plane"), points=4)
    model = make_model(tmp_path / "model", dataset, "Bent", bump=0.5)
    truth = Truth(system("Plane"), load_model(model.path))
    every = off_grid(truth, 48_000, seed=12345)
    share = float((every.errors > 0.3).mean())
    mean = float(every.means.mean())
    assert 0.01 < share < 0.5
    settings = CertificateSettings(tolerance=0.3, confidence=0.9)
    bounds, means = [], []
    for start in range(0, 48_000, 160):
        part = slice(start, start + 160)
        few = replace(every, errors=every.errors[part], means=every.means[part])
        found = sampled_errors(few, settings, largest=0.51, classes=False)
        assert found.above_tolerance
        assert found.mean_bound is not None
        bounds.append(found.above_tolerance.bound >= share)
        means.append(found.mean_bound >= mean)
    # 90%, less what 300 trials may fall short of it by chance (3 standard deviations).
    assert np.mean(bounds) > 0.848
    assert np.mean(means) > 0.848


def test_a_sampled_certificate_never_says_never(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-5)
    assert "never" not in made["headline"] + made["reason"]
    assert made["headline"].startswith("Certified: sampled. ")
    # 500 points of 500: 0.05^(1/500), rounded down.
    share = "at least 99.40% of the domain is within 1e-05, with 95% confidence"
    assert share in made["headline"]
    assert "at least 99.402% of the domain is within it, after 500 random points" in made["reason"]


def test_no_confidence_is_written_as_certainty(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-5, confidence=0.999)
    assert "With 99.9% confidence" in made["reason"]
    assert "with 99.9% confidence" in made["headline"]


def test_an_enumerated_certificate_says_never_of_every_point(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Sum"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-4)
    assert made["verdict"] == "certified: enumerated", made["reason"]
    assert "at all 400 points never off by more than" in made["headline"]
    assert made["errors"]["data"]["against"] == "the system's own float64 solutions"


@pytest.mark.parametrize("budget", [0, 2000], ids=["no-budget", "budget"])
def test_what_will_be_solved_is_told_before_and_kept(tmp_path, budget):
    dataset = make_dataset(tmp_path / "rows", system("Counting"))
    model = make_model(tmp_path / "model", dataset, "Bent")
    counting, told = system("Counting"), []
    counter: Any = type(counting)
    counter.solved = 0
    found = certify(
        load_model(model.path),
        Dataset.open(dataset.path),
        counting,
        CertificateSettings(tolerance=1e-4, samples=3000, batch=64, solves=budget),
        weights=1000,
        told=lambda said: told.append((said, counter.solved)),
    )
    for draw in (image, lines, cases, error_map):
        draw(found)
    made, ((said, before),) = found.certificate, told
    assert made.solves
    assert found.truth
    assert made.errors.off_grid
    total = sum(made.solves.planned.values())
    assert before == 2 * (8 + 256)
    assert f"at most {total:,} rows are solved (528 for the probe, " in said
    assert made.solves.done <= counter.solved == found.truth.solved <= total
    assert made.verdict == "certified: sampled"
    if budget:
        assert total <= budget
        assert made.errors.off_grid.rows < 3000
        with pytest.raises(InvalidInput, match="solves = 700: .* are the fewest"):
            examine(model, dataset, solves=700)
    else:
        assert made.errors.off_grid.rows == 3000


def test_a_slow_solver_says_what_it_will_take_and_solves_no_row_twice(tmp_path):
    """Of a step that is repeated only what has to be solved anew is."""
    weighed = system("Weighed", seconds=0.008)
    told = {"system_args": {"seconds": 0.0}}
    dataset = make_dataset(tmp_path / "rows", system("Weighed"), points=8, told=told)
    predictor = load_model(make_model(tmp_path / "model", dataset, "Bent").path)
    settings = CertificateSettings(tolerance=1e-4, samples=60, solves=480, batch=4, resolve_rows=16)
    said, solved, counter = [], [], Counting
    for _ in range(2):
        counter.solved = 0
        with Keep(str(tmp_path), weighed, {}) as keep:
            found = certify(
                predictor,
                Dataset.open(dataset.path),
                weighed,
                settings,
                weights=1000,
                told=said.append,
                keep=keep,
            )
        solved.append(counter.solved)
        made = found.certificate
        assert made.verdict == "certified: sampled", made.reason
        assert made.solves
        assert made.solves.done == counter.solved
        planned = made.solves.planned
        total = sum(planned.values())
        assert total <= 480
        assert planned["the search for the worst"] >= 144
        assert re.match(rf"at most {total} rows are solved \(.*\), which takes \d+ s; ", said[-1])
    place = rf"{tmp_path}/solved/\w{{32}}"
    assert re.search(rf"; solved rows are kept in {place}$", said[0])
    # The probe and the timing are of this run; rows are held against a second solution of now.
    assert solved[1] == planned["the probe"] + planned["labels"] // 2 + planned["timing"]
    # In both runs the search comes upon the same corners again.
    assert made.solves is not None
    assert made.solves.reused > solved[0] - solved[1] > 100
    assert re.search(
        rf"; \d+ rows of weighed from before, in {place}, are not solved again", said[1]
    )


def test_a_slow_solver_is_not_timed_or_drawn_for_hours(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Counting"), points=4)
    predictor = load_model(make_model(tmp_path / "model", dataset, "Bent").path)
    truth = Truth(system("Counting", seconds=0.03), predictor)
    plan = plan_solves(truth, 1000, CertificateSettings(), points=None)
    assert 0.03 <= plan.seconds < 0.05
    assert plan.counts["timing"] * plan.seconds < 80
    assert plan.counts["pictures"] * plan.seconds < 120
    hours = plan.total * plan.seconds / 3600
    assert f"which takes {hours:.1f} hours; `solves` sets a budget" in plan.said


def test_a_certificate_is_read_back_as_it_was_written(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"), method="random")
    model = make_model(tmp_path / "model", dataset, "Bent")
    made = examine(model, dataset, tolerance=1e-5)
    form = {name: made[name] for name in made if name not in ("failed", "statuses", "headline")}
    read = read_certificate(form)
    assert read.covered
    assert read.to_json() == form
    older = json.loads((Path(__file__).parents[2] / "older" / "certificate.json").read_text())
    before = read_certificate(older)
    assert (before.verdict, before.assurance) == ("refused", None)
    assert before.errors.data.max == older["errors"]["data"]["max"]
    with pytest.raises(InvalidInput, match="another version"):
        read_certificate({**form, "format": "kubestill/certificate/3"})
    with pytest.raises(CorruptData, match="has no condition"):
        read_certificate({**form, "conditions": []})


def test_everything_wrong_is_said_at_once(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    model = make_model(tmp_path / "model", dataset, "Bent")
    outputs = {
        name: LocalArtifact(str(tmp_path / name))
        for name in ("certificate", "metrics", "report", "summary")
    }
    with pytest.raises(InvalidInput) as caught:
        certify_surrogate(
            model=model,
            dataset=dataset,
            **outputs,  # pyright: ignore
            system="heet",
            statistic="median",
            exceptions=True,
            settings={"sampels": 3, "seed": 1},
        )
    message = str(caught.value)
    for part in ("did you mean 'heat'", "statistic", "only classes", "settings.sampels", "'seed'"):
        assert part in message


def test_a_model_of_something_else_is_named(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    other = make_dataset(tmp_path / "other", system("Ramp"))
    model = make_model(tmp_path / "model", other, "Bent")
    with pytest.raises(InvalidInput, match="the model reads 'a'"):
        run(tmp_path, model, dataset)
