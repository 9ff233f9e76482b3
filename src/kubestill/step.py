"""What a compiled step starts: `python3 -m kubestill.step kfp.dsl.executor_main …`.

A step carries no source. Argo keeps several copies of whatever a step's command says, and a
megabyte of them stops Kubeflow's list of tasks; so the command names a component, and the function
is the one that lies in the image.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from kubestill.supervision import Ended, allowed_restarts, forget_outputs, supervise

EXECUTOR = "kfp.dsl.executor_main"
"""Whose place this module takes. `kfp.local` runs no command that does not name it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step, again where it was killed; returns its exit code."""
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
    _leave_the_cause(component, executor_input, ended)
    return ended.code


def execute(component: str, executor_input: dict[str, Any]) -> None:
    """Run a component's function through Kubeflow's own executor.

    Args:
        component: As in `kubestill.components`, such as `train_teacher`.
        executor_input: Inputs, and where outputs go.
    """
    function = load_function(component)
    from kfp.dsl.executor import Executor

    Executor(executor_input=executor_input, function_to_execute=function).execute()


def _leave_the_cause(component: str, executor_input: dict[str, Any], ended: Ended) -> None:
    """Record why the step failed; where it went well, take away what an earlier attempt left."""
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
    """Import a component's function, without what only compiling needs.

    Kubeflow's SDK leaves out its compiler where steps run, and with it the decorator.
    """
    os.environ["_KFP_RUNTIME"] = "true"
    from kfp import dsl

    dsl.component = _leave_as_it_is  # pyright: ignore[reportAttributeAccessIssue]
    module = importlib.import_module(f"kubestill.components.{component}.component")
    return getattr(module, component)


def _leave_as_it_is(**_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: function


if __name__ == "__main__":
    raise SystemExit(main())
