"""The gate of a whole distillation: both trainings, and what the steps after them are told."""

import shutil

import pytest
from gated_rows import digits, write

from kubestill.errors import InvalidInput, Refused
from kubestill.runtime.base.artifacts import LocalArtifact, read_record
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.steps.check_distillation import check_distillation
from kubestill.runtime.steps.train_teacher import train_teacher

SMALL = {
    "teacher_args": {"hidden": [32.0]},
    "teacher_settings": {"threads": 1},
    "student_args": {"hidden": [16.0]},
    "student_settings": {"threads": 1},
    "method": "jitter",
    "shards": 3,
}


@pytest.fixture
def call(tmp_path):
    write(digits(), str(tmp_path / "rows"), lambda frame: frame)
    dataset = LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})

    def run(**options):
        names = ("metrics", "report", "summary", "findings")
        outputs = {name: LocalArtifact(str(tmp_path / name)) for name in names}
        told = check_distillation(dataset=dataset, **outputs, **(SMALL | options))  # pyright: ignore
        return told, outputs

    return run


def test_both_are_told_of_on_one_page_and_the_shards_are_listed(call, tmp_path):
    (verdict, reason, shards), outputs = call()
    assert (verdict, shards) == ("pass", [0, 1, 2])
    assert "teacher: A batch of 64 rows is learned" in reason
    assert "student: A batch of 64 rows is learned" in reason
    html = (tmp_path / "report").read_text()
    assert html.count("<svg") == 2
    assert html.count("What was asked") == 2
    summary = (tmp_path / "summary").read_text()
    assert summary.startswith("# check-distillation: pass")
    assert summary.index("## teacher") < summary.index("## student")
    metadata = outputs["metrics"].metadata
    assert metadata["teacher.steps_to_floor"] > 0
    assert metadata["student.steps_to_floor"] > 0
    assert {type(value) for value in metadata.values()} <= {str, int, float}
    record = read_record(outputs["findings"])
    assert record["verdict"] == record["teacher"]["verdict"] == record["student"]["verdict"]


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_the_worse_of_the_two_decides_and_is_named(call, tmp_path, which):
    with pytest.raises(Refused, match=f"check-distillation: fail. {which}: learning-rate"):
        call(**{f"{which}_learning_rate": 1e-9})
    page = (tmp_path / "report").read_text()
    assert "the learning rate does not work" in page
    (verdict, reason, _), _ = call(**{f"{which}_learning_rate": 1e-9}, strict=False)
    assert verdict == "fail"
    assert reason.startswith(f"{which}: ")


def test_the_teacher_is_checked_on_rows_of_its_own(call, tmp_path):
    write(digits(), str(tmp_path / "few"), lambda frame: frame.head(40))
    few = LocalArtifact(str(tmp_path / "few"), metadata={"kind": "dataset"})
    (_, reason, _), _ = call(augmented=few, strict=False)
    assert "teacher: A batch of 40 rows is learned" in reason


def test_everything_wrong_anywhere_is_said_once_and_by_this_step_s_names(call):
    with pytest.raises(InvalidInput) as caught:
        call(
            teacher_args={"hiden": [32]},
            student_settings={"thread": 1},
            student_network="mpl",
            batch_size=0,
            temperature=0,
            gate={"row": 8},
            thresholds={"acuracy": {"min": 0.9}},
            slices=["nowhere"],
            method="jiter",
            rows=-1,
            shards=0,
            synthetic_settings={"sigma": 1},
        )
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == sorted(set(fields))
    assert {
        "batch_size",
        "gate.row",
        "method",
        "rows",
        "shards",
        "slices[0]",
        "student_network",
        "student_settings.thread",
        "temperature",
    } <= set(fields)
    assert any(field.startswith("teacher_args") for field in fields)
    with pytest.raises(InvalidInput, match="synthetic_settings.sigma"):
        call(synthetic_settings={"sigma": 1})


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_network_that_later_steps_would_not_import_is_refused_before_any_training(
    call, monkeypatch, which
):
    monkeypatch.delenv("KUBESTILL_TRUST")
    with pytest.raises(InvalidInput, match=f"{which}_network.*KUBESTILL_TRUST=gated_networks"):
        call(**{f"{which}_network": "gated_networks:TinyConv", f"{which}_args": {}})


@pytest.mark.parametrize("brought", [False, True])
def test_what_a_student_imitates_is_checked_before_its_teacher_is_trained(call, tmp_path, brought):
    options = {"student_network": "conv", "student_args": {"channels": [4]}}
    trained = {"teacher_network": "conv", "teacher_args": {"channels": [4, 8]}}
    if brought:
        names = ("model", "ledger", "metrics", "report", "summary")
        outputs = {name: LocalArtifact(str(tmp_path / "teacher" / name)) for name in names}
        rows = LocalArtifact(str(tmp_path / "rows"), metadata={"kind": "dataset"})
        given = {"network": "conv", "network_args": {"channels": [4, 8]}, "steps": 1}
        train_teacher(dataset=rows, **given, **outputs)  # pyright: ignore
        trained = {"teacher_uri": outputs["model"].path}
    layers = {"body.5": "body.12", "bodi.2": "body.99"}
    imitate = {"imitate": {"features": {"weight": 1, "layers": layers}}}
    with pytest.raises(InvalidInput) as caught:
        call(**options, **trained, student_settings=imitate)
    assert {problem.field for problem in caught.value.problems} == {
        "student_settings.imitate.features.layers"
    }
    said = str(caught.value)
    assert "the student has no such layer; did you mean 'body.2'" in said
    assert "the teacher has no such layer" in said


def test_a_student_of_answers_at_hand_cannot_have_its_teacher_beside_it(call, tmp_path):
    schema = Dataset.open(str(tmp_path / "rows")).schema.with_soft("soft", 10)
    frame = Dataset.open(str(tmp_path / "rows")).to_pandas()
    frame["soft"] = [[0.0] * 10] * len(frame)
    shutil.rmtree(tmp_path / "rows")
    with DatasetWriter(str(tmp_path / "rows"), schema) as writer:
        writer.write(frame)
    with pytest.raises(InvalidInput, match=r"student_settings\.augment = 'no teacher'"):
        call(student_settings={"augment": {"shift": 1}})


def test_every_student_of_a_sweep_is_checked(call, tmp_path):
    sizes = [{"hidden": [16.0]}, {"hidden": [24.0]}]
    (verdict, reason, _), outputs = call(student_sizes=sizes, student_args={"norm": "layer"})
    assert verdict == "pass"
    assert "student_1: A batch" in reason
    assert "student_2: A batch" in reason
    assert outputs["metrics"].metadata["student_2.steps_to_floor"] > 0
    (_, told, _), _ = call(student_sizes=[sizes[0], {"hidden": [1.0]}], strict=False)
    assert "student_2" in told


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([], "name 1 to 16 sizes"),
        ([{"hidden": [16]}] * 2, r"student_sizes\[1\] = .*is the same as student_sizes\[0\]"),
        ([{"hidden": [16]}, 32], r"student_sizes\[1\] = 32: must be the arguments of a network"),
        ([{"hiden": [16]}, {"hidden": [8]}], r"student_sizes\[0\]\.hiden"),
        ([{"hidden": [n]} for n in range(1, 18)], "name 1 to 16 sizes"),
    ],
)
def test_sizes_that_cannot_be_trained_are_refused(call, sizes, told):
    with pytest.raises(InvalidInput, match=told):
        call(student_sizes=sizes)
