"""Error bands: they hold as often as they say, and are narrow where the surrogate is right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certified_parts import make_dataset, make_model, run, system

from kubestill import load_model
from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.certification.bands import calibrate, rank
from kubestill.runtime.certification.errors import off_grid
from kubestill.runtime.certification.truth import Truth
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.datasets.manifest import Dataset


@pytest.fixture(scope="module")
def bumped(tmp_path_factory):
    """Return a model that errs around x = 0.5, and what it was made from."""
    folder = tmp_path_factory.mktemp("bumped")
    dataset = make_dataset(folder / "rows", system("Plane"), points=12)
    return make_model(folder / "model", dataset, "Bent", bump=0.5), dataset


def test_bands_are_exported_with_the_model_and_hold_against_the_system(tmp_path, bumped):
    model, dataset = bumped
    settings = {"bands": [0.5, 0.95], "hunts": 0, "batch": 8}
    made = run(tmp_path, model, dataset, samples=2000, settings=settings)
    banded = load_model(str(tmp_path / "out" / "certificate" / "model"), bands=True)
    assert banded.bands
    assert banded.digest == load_model(model.path).digest
    assert banded.bands.samples == 1000
    assert banded.bands.holds in made["html"]
    assert "not at every input" in banded.bands.holds
    plane = system("Plane")
    asked = plane.domain.at(np.random.default_rng(1).random((20_000, 2)))
    told, right = banded(asked), plane.solve(asked)
    assert list(told.columns) == ["prediction", *(f"{e}_{c}" for c in (0.5, 0.95) for e in ENDS)]
    for band in made["bands"]:
        low, high = (told[f"{end}_{band['coverage']:g}"].to_numpy() for end in ENDS)
        # Of one calibration the coverage is Beta(k, n + 1 - k): three standard deviations.
        slack = 3 * np.sqrt(band["coverage"] * (1 - band["coverage"]) / 1000)
        held = ((low <= right) & (right <= high)).mean()
        assert held == pytest.approx(band["coverage"], abs=slack + 0.005)
        assert (high + low) / 2 == pytest.approx(told["prediction"].to_numpy(), abs=1e-6)
        assert ((high - low) / 2).mean() == pytest.approx(band["mean"], rel=0.05)
    # Where the network is right its answers have narrow bands.
    width = (told["high_0.95"] - told["low_0.95"]).to_numpy()
    near = (asked["x"] - 0.5).abs().to_numpy()
    assert width[near > 0.4].mean() < 0.2 * width[near < 0.1].mean()
    assert list(load_model(model.path)(asked.iloc[:3]).columns) == ["prediction"]


ENDS = ("low", "high")


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_over_many_calibrations_a_band_holds_as_often_as_it_says(bumped, coverage):
    """The truth is the system's own answer at points of which none calibrated the band."""
    truth = Truth(system("Plane"), load_model(bumped[0].path))
    every = off_grid(truth, 30_000, seed=99)
    asked = off_grid(truth, 4000, seed=100)
    raw = decode_features(asked.inputs, truth.predictor.layout)
    held = []
    for start in range(0, 30_000, 150):
        part = slice(start, start + 150)
        few = replace(
            every,
            inputs=every.inputs.iloc[part],
            errors=every.errors[part],
            apart=every.apart[part],
        )
        bands = calibrate(truth, few, (coverage,), drawn="")
        held.append((asked.apart <= bands.widths(raw)[coverage]).mean())
    # The mean of 200 trials, each about Beta(k, 76 - k), less three standard errors.
    error = 3 * np.std(held) / np.sqrt(len(held))
    assert coverage - error <= np.mean(held) <= coverage + 1 / 76 + error


def test_the_rank_is_the_one_of_split_conformal_prediction():
    assert [rank(9, c) for c in (0.1, 0.5, 0.7, 0.9)] == [1, 5, 7, 9]
    assert rank(8, 0.9) == 9
    assert rank(1000, 0.95) == 951


def test_every_output_has_a_band_of_its_own(tmp_path):
    dataset = make_dataset(tmp_path / "rows", system("Ramp"), points=5)
    model = make_model(tmp_path / "model", dataset, "Bent", bump=0.1)
    settings = {"bands": [0.9], "hunts": 0, "batch": 8}
    run(tmp_path, model, dataset, samples=400, settings=settings)
    banded = load_model(str(tmp_path / "out" / "certificate" / "model"), bands=True)
    told = banded(Dataset.open(dataset.path).to_pandas())
    assert told.columns[8:].tolist() == [f"{e}_0.9_{n}" for e in ENDS for n in range(8)]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Sum", {"settings": {"bands": [0.9]}}, "here every point is compared"),
        ("Parity", {"settings": {"bands": [0.9]}}, "only numbers have error bands"),
        ("Plane", {"settings": {"bands": [0.9]}, "samples": 0}, "give `samples`"),
        ("Plane", {"settings": {"bands": [1.0]}}, "settings.bands"),
        ("Plane", {"settings": {"bands": [0.99]}, "samples": 100}, "takes 198 random points"),
    ],
)
def test_bands_that_cannot_be_had_are_refused(tmp_path, name, options, said):
    dataset = make_dataset(tmp_path / "rows", system(name), points=8)
    model = make_model(tmp_path / "model", dataset, "Even" if name == "Parity" else "Bent")
    with pytest.raises(InvalidInput, match=said):
        run(tmp_path, model, dataset, **options)


def test_bands_of_another_model_or_damaged_are_not_taken(tmp_path, bumped):
    model, _ = bumped
    with pytest.raises(InvalidInput, match=r"bands = .*: has none .* `settings.bands` asks"):
        load_model(model.path, bands=True)
    truth = Truth(system("Plane"), load_model(model.path))
    form = calibrate(truth, off_grid(truth, 400, seed=0), (0.9,), drawn="").to_json()
    place = Path(model.path) / "bands.json"
    tree = form["scale"]
    endless = {**tree, "left": [0] * len(tree["left"]), "right": [0] * len(tree["right"])}
    try:
        for damaged, error in (
            ({**form, "model": "0" * 64}, CorruptData),
            ({**form, "factors": []}, CorruptData),
            ({**form, "scale": endless}, CorruptData),
            ({**form, "scale": {**tree, "feature": [9] * len(tree["feature"])}}, CorruptData),
            ({**form, "format": "kubestill/bands/9"}, InvalidInput),
            ({"format": form["format"]}, CorruptData),
        ):
            place.write_text(json.dumps(damaged))
            with pytest.raises(error):
                load_model(model.path, bands=True)
        place.write_text(json.dumps(form))
        assert load_model(model.path, bands=True).bands is not None
    finally:
        place.unlink()
