"""Start a compiled step: `python3 -m kubestill.step kfp.dsl.executor_main …`.

A step carries no source. Argo keeps several copies of a step's command, and above a megabyte of
them Kubeflow's list of tasks stops changing. So the command names a component, whose function is in
the image.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from kubestill.supervision import (
    FAILED_FOR_GOOD,
    TRAINJOB_VARIABLE,
    Ended,
    allowed_restarts,
    forget_outputs,
    supervise,
)

EXECUTOR = "kfp.dsl.executor_main"
"""The module that this one replaces; `kfp.local` runs no command that does not name it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step, again if it was killed, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m kubestill.step", description=__doc__)
    parser.add_argument("executor", choices=[EXECUTOR], help="whose arguments follow")
    parser.add_argument("--executor_input", required=True, help="what Kubeflow hands over, as JSON")
    parser.add_argument("--function_to_execute", required=True, help="the component's name")
    given = parser.parse_args(argv)
    component, executor_input = given.function_to_execute, json.loads(given.executor_input)
    ended = supervise(
        lambda: execute(component, executor_input),
        restarts=allowed_restarts(component),
        forget=lambda: forget_outputs(executor_input),
    )
    if TRAINJOB_VARIABLE in os.environ:
        # The step that made this pod records what becomes of it.
        for_good = ended.code and not (ended.may_pass or ended.stopped)
        return FAILED_FOR_GOOD if for_good else ended.code
    _leave_the_cause(component, executor_input, ended)
    return ended.code


def execute(component: str, executor_input: dict[str, Any]) -> None:
    """Run a component's function through Kubeflow's own executor.

    Args:
        component: Name in `kubestill.components`, such as `train_teacher`.
        executor_input: Inputs and output locations.
    """
    function = load_function(component)
    if TRAINJOB_VARIABLE in os.environ:
        from kubestill.runtime.steps.inputs import fetch_inputs

        fetch_inputs(executor_input)
    from kfp.dsl.executor import Executor

    Executor(executor_input=executor_input, function_to_execute=function).execute()


def _leave_the_cause(component: str, executor_input: dict[str, Any], ended: Ended) -> None:
    """Record why the step failed; if it succeeded, remove the record of an earlier attempt."""
    # Here, not in the child, which may have been killed.
    from kubestill.runtime.steps.failures import clear_failure, record_failure

    if not ended.code:
        return clear_failure(executor_input)
    if ended.stopped:
        return
    record_failure(
        executor_input,
        error=ended.error,
        message=ended.message,
        component=component,
        attempt=len(ended.tries),
        curable=ended.may_pass,
    )


def load_function(component: str) -> Callable[..., Any]:
    """Import a component's function without the parts of kfp that only compiling needs.

    Where steps run, Kubeflow's SDK leaves out its compiler, and with it the decorator.
    """
    os.environ["_KFP_RUNTIME"] = "true"
    from kfp import dsl

    dsl.component = lambda **_: lambda function: function  # pyright: ignore
    module = importlib.import_module(f"kubestill.components.{component}.component")
    return getattr(module, component)


if __name__ == "__main__":
    raise SystemExit(main())
