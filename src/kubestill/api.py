"""kubestill from Python: a frame or a solver in, a small model out, on this machine.

`run` is `kubestill run` as a function, for any pipeline; `distill` and `surrogate` are the two that
people begin with, by the names of what they vary first. All of them run the same compiled pipeline
as a cluster would, print its steps, and return a `Run` when it has ended well.

Example:
    ```python
    import kubestill

    run = kubestill.distill(frame, target="price", student_steps=500)
    run.scores                      # a DataFrame: teacher, student and control
    run.report                      # shown in a notebook
    answers = run.student(frame)    # the student's predictions
    ```
"""

# Protobuf makes its classes at run time.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import hashlib
import html
import importlib
import importlib.util
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubestill.errors import InvalidInput, KubestillError, Problems

if TYPE_CHECKING:
    import pandas as pd

    from kubestill import local
    from kubestill.runtime.models.predict import Predictor

__all__ = ["Report", "Run", "RunFailed", "distill", "run", "surrogate"]


class RunFailed(KubestillError):
    """A step failed or refused; the message says which, why, and where its whole output lies."""

    def __init__(self, message: str, reports: Mapping[str, Report]):
        self.reports = dict(reports)
        """Those of the steps that wrote one, the refusing one's included, by the step's name."""
        super().__init__(message)


@dataclass(frozen=True)
class Report:
    """A page that a step wrote; a notebook shows it."""

    path: str

    def _repr_html_(self) -> str:
        # In a frame of its own: the page's styles must not reach the notebook.
        with open(self.path, encoding="utf-8") as file:
            page = html.escape(file.read(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:80vh;border:0"></iframe>'


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A run that ended well, and what it made."""

    pipeline: str
    folder: str
    """Where all of it lies."""
    models: dict[str, str]
    """Paths or URIs by name, such as `student`, `control` and `teacher`; the first is the one that
    the run is about."""
    reports: dict[str, Report]
    """By the step that wrote it, in the order of the steps."""
    summary: str
    """The last step's result in short, as Markdown."""
    trusted: tuple[str, ...] = ()
    """Modules that the run's own parameters name, whose networks may be loaded."""
    _ended: local.LocalRun

    @cached_property
    def student(self) -> Predictor:
        """The model that the run is about, loaded: called on a DataFrame it returns one.

        Raises:
            KubestillError: The pipeline made no model.
        """
        if not self.models:
            raise KubestillError(f"{self.pipeline} made no model; run.reports tells what it did")
        return self.load(next(iter(self.models)))

    def load(self, name: str) -> Predictor:
        """Load one of `models` by its name."""
        from kubestill.runtime.models.export import load_model

        return load_model(self.models[name], trust=self.trusted)

    @property
    def report(self) -> Report | None:
        """The report of the last step that wrote one."""
        return next(reversed(self.reports.values()), None)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a model, from the last evaluation.

        For each metric there are three columns: the score, such as `accuracy`, and the ends of its
        interval, `accuracy_low` and `accuracy_high`, which are NaN where there is none.
        `parameters`, `bytes` and `latency_ms` (of one row) are what the model costs.

        Raises:
            KubestillError: The pipeline evaluates nothing.
        """
        import pandas as pd

        from kubestill.local import read_scores

        found = read_scores(self._ended)
        if found is None:
            raise KubestillError(
                f"{self.pipeline} evaluates nothing on rows held out; "
                "run.certificate holds the errors of a surrogate"
            )
        rows: dict[str, dict[str, float]] = {}
        for one in found["models"].values():
            row = rows[one["name"]] = {}
            for metric, score in one["metrics"].items():
                row[metric] = score["value"]
                row[f"{metric}_low"], row[f"{metric}_high"] = score["low"], score["high"]
            cost = one["cost"]
            row |= {"parameters": cost["parameters"], "bytes": cost["bytes"]}
            row["latency_ms"] = 1e3 * cost["latency_seconds"]["1"]
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float)

    @cached_property
    def certificate(self) -> dict[str, Any]:
        """The content of the certificate of a surrogate; docs/certificate.md describes it.

        Raises:
            KubestillError: The pipeline certifies nothing.
        """
        from kubestill.local import find_output

        path = find_output(self._ended, "certificate")
        if not path:
            raise KubestillError(f"{self.pipeline} certifies nothing; see run.scores")
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def __repr__(self) -> str:
        made = ", ".join(self.models) or "no model"
        return f"<{self.pipeline}: {made} in {self.folder}>"

    def _repr_markdown_(self) -> str:
        return self.summary


def run(pipeline: str, *, output: str = "", verbose: bool = False, **parameters: Any) -> Run:
    """Run a pipeline on this machine, as `kubestill run` does, and wait for its end.

    Args:
        pipeline: A name such as `distillation`, or a compiled YAML file. A file runs the code it
            contains, as you.
        output: Folder of the runs; default: runs/<pipeline>. Runs with one folder share their
            checkpoints, so that running again resumes what was interrupted.
        verbose: Print every line of every step.
        parameters: Of the pipeline. A DataFrame counts as the path of a Parquet file, which is
            written below `output` under a name made of its content; its index is left out, unless
            you `reset_index` first.

    Raises:
        InvalidInput: With every unknown name, value of a wrong type and missing parameter.
        RunFailed: A step failed, or refused to go on.
    """
    for module in ("torch", "kfp"):
        if importlib.util.find_spec(module) is None:
            raise KubestillError(
                f"a run on this machine needs {module}, which is not installed: "
                "pip install 'kubestill[client,runtime]'"
            )
    from kubestill import local
    from kubestill.assets.packages import load_package
    from kubestill.forkserver import serve_while

    package = load_package(pipeline)
    root = os.path.abspath(output or os.path.join("runs", package.name))
    arguments: dict[str, Any] = {**local.default_places(package.spec, root), **parameters}
    frames = {name: value for name, value in arguments.items() if hasattr(value, "to_parquet")}
    paths = dict.fromkeys(frames, "")
    local.check_parameters(package.spec, arguments | paths)
    arguments |= _write_frames(frames, os.path.join(root, "data"))
    with serve_while(pipeline) as server:
        ended = local.run_pipeline(
            package.spec, arguments, root=root, verbose=verbose, server=server
        )
    reports = {name: Report(path) for name, path in ended.reports.items()}
    if failure := local.explain_failure(ended):
        raise RunFailed(failure, reports)
    summary = local.find_output(ended, "summary")
    return Run(
        pipeline=package.name,
        folder=ended.folder,
        models=ended.models,
        reports=reports,
        summary=Path(summary).read_text("utf-8").strip() if summary else "",
        trusted=tuple(local.typed_modules(arguments)),
        _ended=ended,
    )


def distill(
    data: pd.DataFrame | str,
    *,
    target: str,
    teacher: Any = "",
    output: str = "",
    **parameters: Any,
) -> Run:
    """Distil a large teacher into a small student and score both on rows neither has seen.

    Args:
        data: The rows: a DataFrame, or a file, glob or folder of Parquet or CSV, local, gs:// or
            s3://.
        target: The column to predict.
        teacher: The model that you have, in place of one that is trained: its file or folder, the
            import path of a class, an address, or a fitted model of LightGBM, XGBoost, CatBoost or
            scikit-learn, which is written below `output` first.
        output: As of `run`.
        parameters: Further ones of the pipeline `distillation`, such as `task`, `student_args` or
            `strict`.

    Returns:
        `run.student` is the student, `run.scores` holds teacher, student and the control that
        learned without a teacher.

    Raises:
        InvalidInput: As of `run`.
        RunFailed: As of `run`.
    """
    if teacher and not isinstance(teacher, str):
        folder = os.path.join(output or os.path.join("runs", "distillation"), "data")
        teacher, classes = _write_teacher(teacher, folder)
        parameters["teacher_options"] = classes | parameters.get("teacher_options", {})
    return run(
        "distillation", output=output, dataset=data, target=target, teacher=teacher, **parameters
    )


def surrogate(system: str, *, output: str = "", **parameters: Any) -> Run:
    """Turn a numerical system into a network, with a certificate of its error.

    Args:
        system: A built-in such as `heat`, `black-scholes` or `table`, or the import path of your
            own, such as `my_pkg.solvers:Wing`.
        output: As of `run`.
        parameters: Further ones of the pipeline `surrogate`, such as `tolerance`, `assurance` or
            `system_args`.

    Returns:
        `run.student` is the network, `run.certificate` what is certified of it.

    Raises:
        InvalidInput: As of `run`.
        RunFailed: As of `run`; a refused certificate is one, unless `strict=False`.
    """
    return run("surrogate", output=output, system=system, **parameters)


def _write_frames(frames: Mapping[str, pd.DataFrame], folder: str) -> dict[str, str]:
    """Write frames as Parquet files named by their content, and return the paths."""
    problems = Problems()
    paths: dict[str, str] = {}
    for name, frame in frames.items():
        packed = io.BytesIO()
        try:
            frame.to_parquet(packed, index=False)
        except (TypeError, ValueError, OverflowError) as error:
            size = f"{type(frame).__name__} of {' x '.join(map(str, frame.shape))}"
            problems.add(name, size, f"cannot be written as Parquet ({error}); convert that column")
            continue
        digest = hashlib.sha256(packed.getbuffer()).hexdigest()
        paths[name] = os.path.join(folder, f"{digest[:16]}.parquet")
        os.makedirs(folder, exist_ok=True)
        beside = f"{paths[name]}.{os.getpid()}"
        with open(beside, "wb") as file:
            file.write(packed.getbuffer())
        os.replace(beside, paths[name])
    problems.raise_if_any()
    return paths


def _write_teacher(model: Any, folder: str) -> tuple[str, dict[str, Any]]:
    """Write a fitted model in its library's own format, under a name made of its content.

    Returns:
        The path, and what the file does not say: the classes of LightGBM's classifiers, and which
        number is missing to a wrapper of XGBoost.
    """
    library, told = type(model).__module__.partition(".")[0], {}
    if library == "lightgbm":
        packed = getattr(model, "booster_", model).model_to_string().encode()
        if hasattr(model, "classes_"):
            told = {"classes": model.classes_.tolist()}
    elif library == "xgboost":
        missing = getattr(model, "missing", None)
        if missing is not None and math.isfinite(missing):
            told = {"missing": float(missing)}
        if not hasattr(model, "get_booster"):
            packed = bytes(model.save_raw("json"))
        else:  # whose own file says that the best round of early stopping answers
            with tempfile.TemporaryDirectory(prefix="kubestill-teacher-") as scratch:
                model.save_model(os.path.join(scratch, "model.json"))
                with open(os.path.join(scratch, "model.json"), "rb") as file:
                    packed = file.read()
    elif library == "catboost":
        with tempfile.TemporaryDirectory(prefix="kubestill-teacher-") as scratch:
            model.save_model(os.path.join(scratch, "model"))
            with open(os.path.join(scratch, "model"), "rb") as file:
                packed = file.read()
    elif hasattr(model, "get_params"):
        if importlib.util.find_spec("skops") is None:
            raise KubestillError("a teacher of scikit-learn needs skops: pip install skops")
        packed = importlib.import_module("skops.io").dumps(model)
    else:
        problems = Problems()
        remedy = (
            "is no fitted model of LightGBM, XGBoost, CatBoost or scikit-learn; give the path of a "
            "file, such as ONNX, or the import path of a kubestill.teachers.Teacher"
        )
        problems.add("teacher", type(model).__name__, remedy)
        raise InvalidInput(problems)
    path = os.path.join(os.path.abspath(folder), f"{hashlib.sha256(packed).hexdigest()[:16]}.model")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(packed)
    os.replace(beside, path)
    return path, told
