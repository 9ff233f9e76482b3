"""The command of a compiled step."""

from __future__ import annotations

from typing import Any

_COMMAND = ["python3", "-m", "kubestill.step", "kfp.dsl.executor_main"]


def name_instead_of_source(component: Any) -> None:
    """Let a component's step name its function, which lies in the image, instead of carrying it.

    Argo keeps four copies of a step's command, and above a megabyte of them Kubeflow's list of
    tasks stands still. Inside of a step the components are plain functions, and stay so.
    """
    if not hasattr(component, "component_spec"):
        return
    container = component.component_spec.implementation.container
    container.command = list(_COMMAND)
