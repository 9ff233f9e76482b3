"""Students of two sizes from one teacher, through the real local runner, on real digits."""

import json
import re
from pathlib import Path

SMALL = {
    "teacher_args": "{hidden: [64]}",
    "teacher_rows": "2000",
    "teacher_steps": "300",
    "rows": "2000",
    "student_sizes": "[{hidden: [2]}, {hidden: [48]}]",
    "student_steps": "300",
    "tolerance": "0.05",
    "gate": "{steps: 200}",
    "strict": "false",
}


def test_the_smallest_student_that_is_as_good_is_chosen_and_judged(kubestill, tmp_path: Path):
    given = [f"-p{name}={value}" for name, value in SMALL.items()]
    done = kubestill("run", "distillation-sweep", "--output", str(tmp_path), *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"✓ train-student  2/2  ", done.stdout)
    (told,) = tmp_path.glob("distillation-sweep-*/**/choose-student/*/output_metadata.json")
    parameters = json.loads(told.read_text())["parameterValues"]
    assert parameters["network_args"] == {"hidden": [48]}
    assert parameters["reason"].startswith("hidden=[48] is ")
    (report,) = tmp_path.glob("distillation-sweep-*/reports/choose-student.html")
    page = report.read_text()
    assert "hidden=[2]" in page
    assert page.count("<svg") >= 2
    # The one that is judged on the hold-out rows is the one that was chosen.
    (judged,) = tmp_path.glob("distillation-sweep-*/**/continuous-eval/*/output_metadata.json")
    (metrics,) = json.loads(judged.read_text())["artifacts"]["metrics"]["artifacts"]
    assert metrics["metadata"]["accuracy"] > 0.8
    assert re.search(r"^student: \S+/student, ", done.stdout, re.MULTILINE)
