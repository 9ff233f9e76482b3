"""What a certificate grants, and everything that it refuses."""

import numpy as np
import pytest
from certified_parts import examine, make_dataset, make_model, run, system

from kubestill.errors import InvalidInput, Refused
from kubestill.runtime.base.artifacts import LocalArtifact
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
    assert made["verdict"] == "certified", made["reason"]
    assert set(made["statuses"].values()) == {"shown"}
    assert made["errors"]["data"]["max"] < 1e-5
    assert made["errors"]["off_grid"]["rows"] == 2000
    assert made["size"]["table_bytes"] == 21 * 21 * 4
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
    assert made["verdict"] == "certified"
    assert made["statuses"]["labels are free of noise"] == "not shown"
    assert made["statuses"]["labels can be reproduced"] == "shown"


def test_roundings_by_the_batch_are_no_chance(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("BatchRounding"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent"), dataset, tolerance=1e-5)
    assert made["verdict"] == "certified", made["reason"]
    (seen,) = [c["said"] for c in made["conditions"] if "deterministic" in c["name"]]
    assert "roundings" in seen


@pytest.mark.parametrize("statistic", ["max", "p999", "mean"])
def test_the_tolerance_is_held_against_the_statistic(tmp_path, statistic):
    dataset = make_dataset(tmp_path / "rows", system("Plane"), points=30)
    model = make_model(tmp_path / "model", dataset, "Bent", bump=0.1)
    # 0.06 is above the mean and below the largest error.
    made = examine(model, dataset, tolerance=0.06, statistic=statistic)
    assert made["verdict"] == ("certified" if statistic == "mean" else "refused"), made["reason"]


def test_without_a_tolerance_nothing_is_held_against_it(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Plane"))
    made = examine(make_model(tmp_path / "model", dataset, "Bent", bump=9.0), dataset)
    assert made["verdict"] == "certified"
    assert made["statuses"]["the error is within the tolerance"] == "not shown"


def test_a_table_agrees_in_every_row(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Parity"))
    made = examine(make_model(tmp_path / "model", dataset, "Even"), dataset)
    assert made["verdict"] == "certified", made["reason"]
    assert made["errors"]["data"]["disagreements"] == 0
    assert "off_grid" not in made["errors"]
    assert made["about"]["coverage"] == "complete"


def test_a_table_that_disagrees_is_refused_unless_its_exceptions_are_written_down(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Parity"))
    model = make_model(tmp_path / "model", dataset, "Even", wrong=3)
    bare = examine(model, dataset)
    assert bare["failed"] == {"error"}
    assert bare["errors"]["data"]["disagreements"] == 60
    made = run(tmp_path, model, dataset, exceptions=True)
    assert made["verdict"] == "certified", made["reason"]
    stored = (tmp_path / "out" / "certificate" / "exceptions.bin").stat().st_size
    assert made["size"]["exceptions_bytes"] == stored > 0
    assert made["size"]["surrogate_bytes"] == made["size"]["weights_bytes"] + stored


def test_a_table_of_ones_own_is_taken_at_its_word_or_refused(tmp_path):
    rows = make_dataset(tmp_path / "rows", system("Parity"), told={"system": ""})
    model = make_model(tmp_path / "model", rows, "Even")
    made = examine(model, rows)
    assert made["verdict"] == "certified"
    assert made["statuses"]["the dataset covers the domain"] == "not shown"
    some = make_dataset(
        tmp_path / "some", system("Plane"), method="random", rows=50, told={"system": ""}
    )
    other = make_model(tmp_path / "other", some, "Bent")
    assert examine(other, some)["failed"] == {"incomplete"}


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
