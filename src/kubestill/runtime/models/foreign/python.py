"""A teacher of the user's own, by import path."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kubestill.errors import InvalidInput, Problem, Problems
from kubestill.runtime.base import trust as trusted
from kubestill.runtime.base.arguments import fit_arguments, import_factory
from kubestill.runtime.models.foreign.runtime import Block, Declared
from kubestill.runtime.models.foreign.spec import Answers

if TYPE_CHECKING:
    import pandas as pd


class Teacher(ABC):
    """Anything that answers rows: a transformer, a rule, a call to a service.

    The constructor may take `weights`, the path of the file that `import-model` was given, and
    arguments of its own, which are plain JSON.
    """

    inputs: Sequence[str]
    """Columns that it reads."""
    classes: Sequence[str] = ()
    """Labels in the order of the outputs; none for a regression."""
    output: Answers = "logit"
    """What `predict` returns."""
    parallel: bool = False
    """Whether several threads may call `predict` at a time. Then each block is computed on one
    thread, so that answers have the same bits on any number of cores; else one block at a time gets
    all threads of torch."""

    @abstractmethod
    def predict(self, rows: pd.DataFrame) -> NDArray[Any]:
        """Return the outputs for up to 8,192 rows: [B, K], or [B].

        Args:
            rows: The columns of `inputs`: numbers as float32, labels as text, NaN where missing.
        """


def find_teacher(path: str, *, vouched: bool, trust: Iterable[str] = ()) -> Callable[..., Teacher]:
    """Return the class at an import path, or registered under a name.

    Args:
        path: `package.module:Name`, or an entry point of the group `kubestill.teachers`.
        vouched: The user typed it. Otherwise a file names it, and somebody has to vouch for it.
        trust: Packages that the caller vouches for.

    Raises:
        InvalidInput: Nobody vouches for it, or it is no `Teacher`.
    """
    field, group = "teacher", trusted.TEACHERS
    if ":" in path:
        if not vouched:
            trusted.check_trusted(path, field=field, group=group, trust=trust)
        found = import_factory(path, field=field)
        if not vouched:
            trusted.check_defined(found, path, field=field, group=group, trust=trust)
    else:
        found = trusted.find_registered(group, path)
    if not (inspect.isclass(found) and issubclass(found, Teacher)):
        remedy = (
            "must be a subclass of kubestill.teachers.Teacher: nothing else is called, since the "
            "path is followed again by whoever loads the model"
        )
        raise InvalidInput([Problem("teacher", path, remedy)])
    return found


class PythonTeacher:
    """A `Teacher` behind the protocol."""

    def __init__(
        self,
        factory: Callable[..., Teacher],
        args: Mapping[str, Any],
        content: bytes,
    ):
        # Threads of OpenMP belong to the thread that asks for them, and wait for it in a loop.
        self._alone = ThreadPoolExecutor(1, thread_name_prefix="kubestill-teacher")
        self._threads = torch.get_num_threads()
        offers: dict[str, Any] = {}
        if content:
            folder = tempfile.mkdtemp(prefix="kubestill-teacher-")
            # It lives as long as the teacher, which may map it.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            offers["weights"] = os.path.join(folder, "weights")
            with open(offers["weights"], "wb") as file:
                file.write(content)
        arguments = fit_arguments(factory, args, offers, prefix="args.")
        name = f"{factory.__module__}:{factory.__qualname__}"
        try:
            self._teacher = factory(**arguments)
            inputs = tuple(self._teacher.inputs)
            classes = tuple(map(str, self._teacher.classes))
            output = self._teacher.output
        except Exception as error:
            remedy = f"building it raised {type(error).__name__}: {error}"
            raise InvalidInput([Problem("teacher", name, remedy)]) from error
        problems = Problems()
        if isinstance(self._teacher.inputs, str) or not inputs:
            problems.add(f"{name}.inputs", inputs, "list the columns that it reads")
        if output not in ("logit", "probability", "value"):
            problems.add(f"{name}.output", output, "use logit, probability or value")
        problems.raise_if_any()
        self.declared = Declared(
            inputs=inputs,
            width=None,
            reads="labels",
            classes=classes or None,
            outputs=None,
            answers=output if classes else "value",
        )

    def predict(self, rows: Block) -> NDArray[Any]:
        """Ask the teacher, one block at a time unless it says that it expects threads."""
        if self._teacher.parallel:
            return np.asarray(self._teacher.predict(rows.frame))
        return self._alone.submit(self._ask, rows.frame).result()

    def _ask(self, frame: pd.DataFrame) -> NDArray[Any]:
        # Where blocks are labelled side by side, each has one thread; here the others wait.
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return np.asarray(self._teacher.predict(frame))
        finally:
            torch.set_num_threads(before)
