"""A notebook: a frame goes in, a student comes out, and the report is shown."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FRAME = """
import numpy as np, pandas as pd
area = np.random.default_rng(0).uniform(20, 200, 1200)
frame = pd.DataFrame({"area": area, "town": np.where(area % 2 < 1, "Aa", "Ii")})
frame["price"] = 3.0 * frame["area"] + 20.0 * (frame["town"] == "Aa")
"""
DISTIL = """
import kubestill
run = kubestill.distill(frame, target="price", method="munge", output="out", strict=False,
                        teacher_steps=120, student_steps=120, rows=2048, teacher_rows=512)
run
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def cells(folder: Path) -> list[nbformat.NotebookNode]:
    sources = [
        FRAME,
        DISTIL,
        "run.report",
        "run.scores",
        "run.student(frame.head(3)).to_csv(index=False)",
        "sorted(run.models)",
        "try:\n    kubestill.distill(frame, target='price', rows='many', stepz=3)\n"
        "except ValueError as error:\n    print(error)",
        "try:\n    run.certificate\nexcept kubestill.KubestillError as error:\n    print(error)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources])
    NotebookClient(book, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return book.cells


def shown(cell: nbformat.NotebookNode, kind: str) -> str:
    return "".join(one.data[kind] for one in cell.outputs if kind in one.get("data", {}))


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(one.text for one in cell.outputs if one.output_type == "stream")


def test_the_steps_are_shown_while_they_run(cells):
    assert "✓ import-dataset" in printed(cells[1])
    assert "✓ continuous-eval" in printed(cells[1])


def test_the_run_shows_its_summary_and_its_report(cells):
    assert "| student |" in shown(cells[1], "text/markdown")
    page = shown(cells[2], "text/html")
    assert page.startswith("<iframe srcdoc=")
    assert "&lt;!doctype html&gt;" in page.lower()


def test_scores_are_a_frame(cells):
    table = shown(cells[3], "text/html")
    for name in ("student", "teacher", "control", "rmse_low", "parameters"):
        assert name in table


def test_the_student_answers(cells):
    answers = shown(cells[4], "text/plain")
    assert answers.count("\\n") == 4
    assert "prediction" in answers


def test_models_have_names(cells):
    assert shown(cells[5], "text/plain") == "['control', 'student', 'teacher']"


def test_wrong_parameters_are_refused_together_before_anything_runs(cells):
    assert "rows = 'many': give a whole number" in printed(cells[6])
    assert "stepz = 3: the pipeline has no such parameter" in printed(cells[6])
    assert "✓" not in printed(cells[6])


def test_what_a_pipeline_does_not_make_is_said(cells):
    assert "certifies nothing; see run.scores" in printed(cells[7])


def test_models_lie_where_their_names_say(cells, folder):
    (out,) = folder.glob("out/distillation-*")
    for name in ("student", "control", "teacher"):
        assert (out / name / "model.json").is_file()
