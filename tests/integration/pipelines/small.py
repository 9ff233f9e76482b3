"""The distillation pipeline on real digits, small enough for a test."""

from pathlib import Path

SMALL = {
    "teacher_args": "{hidden: [256, 256], dropout: 0.2}",
    "teacher_steps": "400",
    "rows": "9000",
    "shards": "2",
    "student_args": "{hidden: [32]}",
    "student_steps": "600",
}


def arguments(output: Path, **overrides: str) -> list[str]:
    """Return the arguments of `kubestill` that run it below `output`."""
    given = [f"-p{name}={value}" for name, value in {**SMALL, **overrides}.items()]
    return ["run", "distillation", "--output", str(output), *given]
