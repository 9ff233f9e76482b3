"""The task around the gate: what it refuses, what it writes, when it fails."""

import pytest
from gated_cases import shuffled
from gated_rows import digits, write

from kubestill.errors import InvalidInput, Refused
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.steps.overfit_batch import overfit_batch

OUTPUTS = ("metrics", "report", "summary", "findings")


def noise(frame):
    """Labels that nothing can be learned from, on few rows, yet enough to tell."""
    return shuffled(frame.head(900).copy())


@pytest.fixture
def call(tmp_path):
    def run(change=lambda frame: frame, **options):
        write(digits(), str(tmp_path / "rows"), change)
        dataset = LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})
        outputs = {name: LocalArtifact(str(tmp_path / name)) for name in OUTPUTS}
        given = {"network_args": {"hidden": [32.0]}, "settings": {"threads": 1}, **options}
        told = overfit_batch(dataset=dataset, **outputs, **given)  # pyright: ignore
        return told, outputs

    return run


def test_it_writes_a_page_a_summary_and_scalars(call, tmp_path):
    (verdict, reason), outputs = call()
    assert verdict == "pass"
    assert "A batch of 64 rows is learned" in reason
    html = (tmp_path / "report").read_text()
    assert "<svg" in html
    assert "rows by heart" in html
    assert (tmp_path / "summary").read_text().startswith("# overfit-batch: pass")
    metadata = outputs["metrics"].metadata
    assert metadata["steps_to_floor"] > 0
    assert {type(value) for value in metadata.values()} <= {str, int, float}
    assert read_record(outputs["findings"])["verdict"] == "pass"


def test_strict_fails_with_the_diagnosis_after_the_report(call, tmp_path):
    with pytest.raises(Refused, match="fail. learning-rate: At a learning rate of 1e-09"):
        call(learning_rate=1e-9)
    assert "the learning rate does not work" in (tmp_path / "report").read_text()


def test_without_strict_the_verdict_is_handed_on(call):
    (verdict, reason), _ = call(change=noise, strict=False)
    assert verdict == "undetermined"
    assert "noise, or labels of other rows" in reason


def test_what_cannot_be_told_may_be_accepted(call):
    (verdict, _), _ = call(change=noise, gate={"undetermined": "accept"})
    assert verdict == "pass"


def test_too_little_time_is_said(call):
    (verdict, reason), _ = call(
        learning_rate=1e-9, gate={"seconds": 0.05, "steps": 1_000_000}, strict=False
    )
    assert verdict == "undetermined"
    assert "gate.seconds" in reason


def test_everything_wrong_is_said_at_once(call):
    with pytest.raises(InvalidInput) as caught:
        call(
            mode="distil",
            optimizer="Adm",
            temperature=0,
            gate={"row": 8, "excess": 2.0},
            thresholds={"acuracy": {"min": 0.9}},
            slices=["nowhere"],
        )
    message = str(caught.value)
    remedies = ("did you mean 'rows'", "did you mean 'Adam'", "did you mean 'accuracy'")
    for part in (*remedies, "gate.excess", "temperature", "slices[0]", "no teacher outputs"):
        assert part in message
    with pytest.raises(InvalidInput, match="no teacher outputs"):
        call(mode="distil")
    with pytest.raises(InvalidInput, match="did you mean 'hard'"):
        call(mode="herd")


def test_it_refuses_what_the_training_would_refuse_of_its_validation_rows(call, tmp_path):
    write(digits(), str(tmp_path / "held"), lambda frame: frame.head(100))
    held = LocalArtifact(str(tmp_path / "held"), metadata={"kind": "dataset"})
    settings = {"step_path": "fused", "checkpoints": {"keep_best": 0}}
    given = {"network_args": {"hidden": [32.0], "dropout": 0.1}, "settings": settings}
    with pytest.raises(InvalidInput) as caught:
        call(validation=held, **given)
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"step_path", "settings.checkpoints.keep_best"}
    (tmp_path / "held" / "dataset.json").write_text("{")
    with pytest.raises(InvalidInput, match="held"):
        call(validation=held)


def test_a_training_may_follow_rows_that_the_gate_is_not_shown(call):
    (verdict, _), _ = call(settings={"threads": 1, "patience": 3, "metric": "accuracy"})
    assert verdict == "pass"
