"""A user's own golden rows: in the registry once, and handed to every judgement from then on."""

from __future__ import annotations

import pytest
from scene import Scene, rows

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.retraining.golden import open_golden
from kubestill.runtime.steps import open_champion as task


@pytest.fixture
def golden(scene: Scene) -> str:
    path = scene.folder / "golden.csv"
    rows(900, 20, day="2012-01-01").drop(columns="t").to_csv(path, index=False)
    return str(path)


def handed_on(scene: Scene) -> list[int]:
    """The ids of the golden rows that open-champion gives."""
    out = LocalArtifact(str(scene.folder / "golden"))
    task._golden(scene.registry, scene.registry.read(), out)
    return sorted(int(value) for value in Dataset.open(out.path).to_pandas()["id"])


def test_they_are_imported_once_and_never_read_again(scene: Scene, golden) -> None:
    scene.deliver("first.parquet", rows(0, 100))
    first = scene.run("2013-01-20", golden_source=golden)
    assert f"20 golden rows imported from {golden}" in first.reason
    scene.promote(first)
    state = scene.registry.read()
    assert state.golden is not None
    assert state.golden.rows == 20
    # The first champion's judges are not needed as golden rows: they teach the next one.
    assert state.windows[0].judge == "trainable"
    rows(0, 5).to_csv(golden, index=False)
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.run("2013-03-01", golden_source=golden)
    assert scene.registry.read().golden == state.golden
    assert handed_on(scene) == list(range(900, 920))


def test_another_source_replaces_them(scene: Scene, golden) -> None:
    scene.started()
    first = scene.registry.read()
    assert first.windows[0].judge == "golden"
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    scene.run("2013-03-01", golden_source=golden)
    found = scene.registry.read().golden
    assert found is not None
    assert open_golden(scene.registry, found).rows == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="x"), "the golden rows have no such column"),
        (lambda frame: frame.assign(y="maybe"), "is no class of the target, in 20 rows"),
        (lambda frame: frame.assign(x="much"), "golden_source column 'x'"),
        (lambda frame: frame.assign(y=None), "no row has a target that can be used"),
    ],
    ids=["column missing", "unknown class", "another type", "no target"],
)
def test_rows_that_cannot_be_scored_on_stop_the_run_before_it_takes_any(
    scene: Scene, golden, change, message
) -> None:
    scene.started()
    before = scene.registry.read()
    change(rows(900, 20)).to_csv(golden, index=False)
    scene.deliver("b.parquet", rows(100, 50, day="2013-02-01"))
    with pytest.raises(InvalidInput, match=message):
        scene.run("2013-03-01", golden_source=golden)
    assert scene.registry.read() == before


def test_a_golden_path_without_files_is_reported_under_its_name(scene: Scene) -> None:
    scene.deliver("first.parquet", rows(0, 100))
    with pytest.raises(InvalidInput, match="golden_source = .*nothing.csv"):
        scene.run("2013-01-20", golden_source=str(scene.folder / "nothing.csv"))


def test_a_copy_that_was_changed_by_hand_is_not_scored_on(scene: Scene, golden) -> None:
    scene.deliver("first.parquet", rows(0, 100))
    scene.run("2013-01-20", golden_source=golden)
    found = scene.registry.read().golden
    assert found is not None
    with pytest.raises(CorruptData, match="is not what was imported"):
        open_golden(scene.registry, found.model_copy(update={"fingerprint": "0"}))
    with pytest.raises(CorruptData, match="are gone"):
        open_golden(scene.registry, found.model_copy(update={"folder": "golden/other"}))
