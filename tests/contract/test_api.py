"""The functions for Python programs, up to the point where a pipeline runs."""

import pandas as pd
import pytest

import kubestill
from kubestill import api, local
from kubestill.local import TaskRun
from kubestill.local.results import collect_reports, name_models


def test_the_package_shows_what_it_offers():
    assert {"distill", "surrogate", "run", "load_model", "Run", "RunFailed"} <= set(dir(kubestill))
    for name in kubestill.__all__:
        assert getattr(kubestill, name) is not None


def test_a_missing_half_of_the_package_is_named(without):
    told = without(
        "torch",
        "import sys; import kubestill\n"
        "try:\n    kubestill.load_model\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
        "del sys.meta_path[0]; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "try:\n    kubestill.run('surrogate')\n"
        "except kubestill.KubestillError as error:\n    print(error)",
    )
    assert "load_model needs torch: pip install 'kubestill[runtime]'" in told
    assert "a run on this machine needs torch, which is not installed" in told


def test_equal_frames_are_one_file_and_the_index_is_left_out(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[7, 8])
    (first,) = api._write_frames({"dataset": frame}, str(tmp_path)).values()
    (second,) = api._write_frames({"source": frame.copy()}, str(tmp_path)).values()
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first.rpartition("/")[2]]
    pd.testing.assert_frame_equal(pd.read_parquet(first), frame.reset_index(drop=True))


def test_frames_that_parquet_cannot_hold_are_refused_together(tmp_path):
    frame = pd.DataFrame({"a": [1, "x"]})
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(kubestill.InvalidInput) as refused:
        api._write_frames({"dataset": frame, "golden": twice}, str(tmp_path / "data"))
    assert [problem.field for problem in refused.value.problems] == ["dataset", "golden"]
    assert not (tmp_path / "data").exists()


def test_wrong_parameters_are_refused_before_a_frame_is_written(tmp_path):
    frame = pd.DataFrame({"a": [1]})
    with pytest.raises(kubestill.InvalidInput, match="2 problems"):
        kubestill.distill(frame, target="a", output=str(tmp_path / "out"), rowz=1, strict="no")
    assert not (tmp_path / "out").exists()


def test_a_failure_carries_the_reports_of_the_steps_that_ran(tmp_path):
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "report").write_text("<!doctype html><p>a &amp; b</p>")
    task = TaskRun(name="gate", folder=str(tmp_path / "gate"), log="x", ok=False, error="no")
    ended = local.LocalRun(folder=str(tmp_path), tasks=[task])
    reports = {name: api.Report(path) for name, path in collect_reports(ended).items()}
    assert "&lt;p&gt;a &amp;amp; b&lt;/p&gt;" in reports["gate"]._repr_html_()
    error = api.RunFailed(local.explain_failure(ended), reports)
    assert "gate failed: no" in str(error)
    assert list(error.reports) == ["gate"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_model_gets_a_short_path_where_no_step_has_that_name(tmp_path, taken):
    model = tmp_path / "train" / "1" / "model"
    model.mkdir(parents=True)
    if taken:
        (tmp_path / "model").mkdir()
    ended = local.LocalRun(folder=str(tmp_path), models={"model": str(model)})
    (path,) = name_models(ended).values()
    assert path == str(model if taken else tmp_path / "model")
    assert (tmp_path / "model").is_symlink() == (not taken)


def test_a_model_in_a_store_keeps_its_address(tmp_path):
    ended = local.LocalRun(folder=str(tmp_path), models={"model": "gs://bucket/models/3"})
    assert name_models(ended) == {"model": "gs://bucket/models/3"}
