"""What of a component goes into a pipeline: as little as its steps need."""

from __future__ import annotations

from typing import Any

_COMMAND = ["python3", "-m", "kubestill.step", "kfp.dsl.executor_main"]


def name_instead_of_source(component: Any) -> None:
    """Let a component's step name its function, which lies in the image, instead of carrying it.

    Argo keeps several copies of a step's command, and above a megabyte of them Kubeflow's list of
    tasks stands still. Inside of a step the components are plain functions, and stay so.
    """
    if not hasattr(component, "component_spec"):
        return
    container = component.component_spec.implementation.container
    container.command = list(_COMMAND)


def leave_out_descriptions(component: Any) -> None:
    """Let a component tell a pipeline what its ports are, not what they mean.

    Argo keeps eight copies of a step's interface. What the ports mean is in the component's own
    YAML and README, which `kubestill.assets` writes from the function.
    """
    if not hasattr(component, "component_spec"):
        return
    spec = component.component_spec
    for port in (*(spec.inputs or {}).values(), *(spec.outputs or {}).values()):
        port.description = None
