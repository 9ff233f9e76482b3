"""The whole pipeline on real digits, through the real local runner, with small settings."""

import json
import re
from pathlib import Path

from small import arguments


def outputs(output: Path, task: str) -> dict:
    (file,) = output.glob(f"distillation-*/**/{task}/*/output_metadata.json")
    return json.loads(file.read_text())


def test_every_task_ran(run):
    stdout, _ = run
    done = re.findall(r"✓ (\S+)", stdout)
    assert sorted(done) == [
        "augment",
        "check-distillation",
        "continuous-eval",
        "gather-shards",
        "import-dataset",
        "label-with-teacher",
        "select-checkpoint",
        "train-control",
        "train-student",
        "train-teacher",
    ]
    assert re.search(r"✓ label-with-teacher  2/2  ", stdout)


def test_a_gate_that_finds_nothing_is_one_line(run):
    stdout, _ = run
    (told,) = re.findall(r"^.*check-distillation.*: .*$", stdout, re.MULTILINE)
    assert re.search(r"✓ check-distillation  \S+ s  pass: teacher: ", told)


def test_it_ends_with_the_scores_and_the_report(run):
    stdout, _ = run
    table = [line for line in stdout.splitlines() if line.startswith("|")]
    assert any("accuracy" in line for line in table)
    reports = re.findall(r"^report: (.*)$", stdout, re.MULTILINE)
    assert reports[-1].endswith("continuous-eval.html")


def test_it_ends_with_the_models_and_how_the_student_is_used(run):
    stdout, _ = run
    end = stdout[stdout.index("\nreport: ") :]
    line = r"^(student|control|teacher): (\S+), [\d,]+ parameters, accuracy 0\.\d+$"
    places = dict(re.findall(line, end, re.MULTILINE))
    assert len(places) == 3
    for name, place in places.items():
        assert place.endswith(f"/{name}")
    assert f'    student = kubestill.load_model("{places["student"]}")' in end


def test_the_report_is_one_self_contained_page(run):
    _, output = run
    (report,) = output.glob("distillation-*/reports/continuous-eval.html")
    html = report.read_text()
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert "<svg" in html
    assert not re.search(r"""(src|href)=["']https?://""", html)
    sections = (
        "How they learned",
        "What size buys",
        "Where student and teacher agree",
        "Can its probabilities be believed?",
        "What each costs",
        "How they were trained",
    )
    assert [title for title in sections if title not in html] == []


def test_the_students_learned_and_there_is_a_decision(run):
    _, output = run
    evaluation = outputs(output, "continuous-eval")
    decision = evaluation["parameterValues"]["decision"]
    assert re.fullmatch(r"[a-z-]+", decision)
    (metrics,) = evaluation["artifacts"]["metrics"]["artifacts"]
    assert metrics["metadata"]["accuracy"] > 0.9


def test_all_gathered_rows_carry_the_teachers_output(run):
    from kubestill.runtime.datasets.dataset import Dataset

    _, output = run
    folder = outputs(output, "gather-shards")["parameterValues"]["dataset_uri"]
    gathered = Dataset.open(folder)
    (original,) = outputs(output, "import-dataset")["artifacts"]["dataset"]["artifacts"]
    assert gathered.rows == 9000 + original["metadata"]["rows"]
    assert gathered.schema.soft is not None


def test_bad_input_fails_with_the_remedy(kubestill, tmp_path):
    done = kubestill(*arguments(tmp_path / "runs", dataset="digitz"))
    assert done.returncode == 1
    assert "did you mean 'digits'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
