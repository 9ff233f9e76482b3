"""How a component hands its arguments to the runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def call_step(name: str, arguments: Mapping[str, Any]) -> Any:
    """Run the function of this name in `kubestill.runtime.steps`.

    The runtime is imported here, when the step runs: pipelines compile without torch. A contract
    test holds every step to the parameters of its component.

    Args:
        name: The component's name; module and function in the runtime have the same.
        arguments: The component's own, artifacts included: its `locals()`.

    Returns:
        The component's outputs, in their order.
    """
    step = getattr(importlib.import_module(f"kubestill.runtime.steps.{name}"), name)
    return step(**arguments)
