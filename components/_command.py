"""Keep what a component puts into a pipeline small: as little as its steps need."""

from __future__ import annotations

from typing import Any

_COMMAND = ["python3", "-m", "kubestill.step", "kfp.dsl.executor_main"]


def name_instead_of_source(component: Any) -> None:
    """Make a component's step name its function, which is in the image, instead of carrying it.

    Argo keeps several copies of a step's command, and above a megabyte of them Kubeflow's list of
    tasks stops changing. Inside a step, components are plain functions and stay as they are.
    """
    if not hasattr(component, "component_spec"):
        return
    container = component.component_spec.implementation.container
    container.command = list(_COMMAND)


def leave_out_descriptions(component: Any) -> None:
    """Remove the descriptions of a component's ports.

    Argo keeps eight copies of a step's interface. The component's own YAML and README, which
    `kubestill.assets` writes from the function, keep the descriptions.
    """
    if not hasattr(component, "component_spec"):
        return
    spec = component.component_spec
    for port in (*(spec.inputs or {}).values(), *(spec.outputs or {}).values()):
        port.description = None
