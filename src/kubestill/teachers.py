"""Write a teacher of your own, for `import-model` and `distillation`: docs/teachers.md."""

from kubestill.runtime.models.foreign.python import Teacher

__all__ = ["Teacher"]


def __dir__() -> list[str]:
    return sorted(__all__)
