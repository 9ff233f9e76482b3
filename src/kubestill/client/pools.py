"""Check that nodes can take the steps of a run: first its parameters, then the nodes.

Kubernetes says nothing of a pod that no node can take: it stays pending, and the run with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kubernetes.utils import quantity

from kubestill.client.kube import NotChecked, ask
from kubestill.errors import ClusterError, Problems, counted

_PLACEMENT = ("accelerator", "accelerators", "cpu", "memory", "node_selector", "tolerations")
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_RESOURCE = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?"


@dataclass(frozen=True, kw_only=True)
class NodeRequest:
    """What each step with a device requests of its node."""

    accelerator: str
    """Kubernetes' name of the resource, such as `nvidia.com/gpu`."""
    accelerators: int
    """How many of them; 0 for none."""
    cpu: Decimal
    """Processors."""
    memory: Decimal
    """Bytes."""
    node_selector: Mapping[str, str]
    tolerations: tuple[Mapping[str, Any], ...]


def read_request(arguments: Mapping[str, Any]) -> NodeRequest | None:
    """Read what a run asks for out of the parameters that each of our pipelines has.

    Args:
        arguments: All of the run's, defaults included.

    Returns:
        None where the pipeline has no such parameters.

    Raises:
        InvalidInput: With everything that no cluster could do.
    """
    if not set(_PLACEMENT) <= set(arguments):
        return None
    problems = Problems()
    accelerator, accelerators = arguments["accelerator"], arguments["accelerators"]
    if accelerators and not re.fullmatch(r"[1-9]\d*", accelerators):
        problems.add(
            "accelerators", accelerators, "give a whole number as a string, or '' for none"
        )
        accelerators = ""
    if not re.fullmatch(_RESOURCE, accelerator):
        remedy = "give the resource's name, such as nvidia.com/gpu; node_selector chooses the model"
        problems.add("accelerator", accelerator, remedy)
    device = arguments.get("device", "auto")
    if device.startswith("cuda") and not accelerators:
        problems.add("device", device, "no pod gets a GPU without accelerators, such as '1'")
    if device == "cpu" and accelerators:
        problems.add("device", device, f"accelerators = {accelerators!r} would idle; leave one out")
    sizes = {name: _quantity(name, arguments[name], problems) for name in ("cpu", "memory")}
    for name, value in arguments["node_selector"].items():
        if not isinstance(value, str):
            problems.add(f"node_selector.{name}", value, "a label is a string: put it in quotes")
    for one in arguments["tolerations"]:
        _check_toleration(one, problems)
    problems.raise_if_any()
    return NodeRequest(
        accelerator=accelerator,
        accelerators=int(accelerators or 0),
        node_selector=arguments["node_selector"],
        tolerations=tuple(arguments["tolerations"]),
        **sizes,
    )


def list_nodes() -> list[dict[str, Any]]:
    """List the nodes of the cluster that the kube config, or the pod, belongs to.

    Raises:
        NotChecked: There is no way to ask, or no right to.
    """
    return ask(lambda core: core.list_node, what="list nodes")["items"]


def find_pool(request: NodeRequest, nodes: list[dict[str, Any]]) -> str:
    """Count the nodes that could take one step, in a sentence.

    Raises:
        ClusterError: Nodes have the labels, but none can take it; says what they lack.
        NotChecked: No node has the labels at the moment.
    """
    wanted = request.node_selector.items()
    pool = [node for node in nodes if wanted <= (node["metadata"].get("labels") or {}).items()]
    labels = ", ".join(f"{name}={value}" for name, value in wanted) or "any label"
    if not pool:
        raise NotChecked(
            f"not checked: no node has {labels} now, as in a pool that is scaled to zero"
            + _other_values(request, nodes)
        )
    asked = f"{request.accelerators} {request.accelerator}"
    steps: list[tuple[Callable[[dict[str, Any]], bool], Callable[[], str]]] = [
        (
            lambda node: _allocatable(node, request.accelerator) >= request.accelerators,
            lambda: f"none offers {asked}: {_offers(request, pool)}",
        ),
        (
            lambda node: not _repelling(request, node),
            lambda: f"none lets such a step in: add tolerations for {_taints(request, left)}",
        ),
        (
            lambda node: (
                _allocatable(node, "cpu") >= request.cpu
                and _allocatable(node, "memory") >= request.memory
            ),
            lambda: f"none has so much cpu and memory to give: {_sizes(left)}",
        ),
    ]
    left = pool
    for fits, complaint in steps:
        found = [node for node in left if fits(node)]
        if not found:
            raise ClusterError(f"of {counted(len(pool), 'node')} with {labels} {complaint()}")
        left = found
    return f"{len(left)} of {counted(len(pool), 'node')} with {labels} can take a step" + (
        f" with {asked}" if request.accelerators else ""
    )


def _quantity(name: str, text: str, problems: Problems) -> Decimal:
    try:
        return quantity.parse_quantity(text)
    except ValueError:
        problems.add(name, text, "give a quantity of Kubernetes, such as 2, 500m or 4Gi")
        return Decimal(0)


def _check_toleration(one: Any, problems: Problems) -> None:
    known = {"key", "operator", "value", "effect", "tolerationSeconds"}
    if not isinstance(one, dict) or set(one) - known:
        problems.add("tolerations", one, f"each is a mapping of {', '.join(sorted(known))}")
    elif one.get("operator", "Equal") not in ("Equal", "Exists"):
        problems.add("tolerations", one, "operator is Equal or Exists")
    elif one.get("operator") == "Exists" and one.get("value"):
        problems.add("tolerations", one, "operator Exists takes no value; Equal does")
    elif not isinstance(one.get("value", ""), str):
        problems.add("tolerations", one, "a taint's value is a string: put it in quotes")
    elif one.get("effect", "") not in _EFFECTS:
        problems.add("tolerations", one, f"effect is one of {', '.join(_EFFECTS[1:])}")


def _allocatable(node: dict[str, Any], resource: str) -> Decimal:
    return quantity.parse_quantity(node["status"].get("allocatable", {}).get(resource, "0"))


def _repelling(request: NodeRequest, node: dict[str, Any]) -> list[dict[str, str]]:
    """List the taints of a node that keep the step away."""
    taints = node["spec"].get("taints") or []
    hard = [taint for taint in taints if taint["effect"] != "PreferNoSchedule"]
    return [
        taint for taint in hard if not any(_tolerates(one, taint) for one in request.tolerations)
    ]


def _tolerates(one: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    exists = one.get("operator") == "Exists"
    if one.get("effect") and one["effect"] != taint["effect"]:
        return False
    if not one.get("key"):
        return exists
    return one["key"] == taint["key"] and (exists or one.get("value", "") == taint.get("value", ""))


def _offers(request: NodeRequest, pool: list[dict[str, Any]]) -> str:
    most = max(_allocatable(node, request.accelerator) for node in pool)
    if most:
        return f"{most} at most"
    resources = {name for node in pool for name in node["status"].get("allocatable", {})}
    others = ", ".join(sorted(name for name in resources if "/" in name))
    return (
        f"they have {others or 'no accelerators'}; choose another node_selector, or see that the "
        "pool has GPUs and their device plugin runs"
    )


def _taints(request: NodeRequest, nodes: list[dict[str, Any]]) -> str:
    taints = {
        f"{taint['key']}={taint.get('value', '')}:{taint['effect']}"
        for node in nodes
        for taint in _repelling(request, node)
    }
    return ", ".join(sorted(taints))


def _sizes(nodes: list[dict[str, Any]]) -> str:
    largest = max(nodes, key=lambda node: _allocatable(node, "memory"))["status"]["allocatable"]
    return f"the largest {largest['cpu']} and {largest['memory']}"


def _other_values(request: NodeRequest, nodes: list[dict[str, Any]]) -> str:
    """List the values that the labels do have, so that a misspelt one is found."""
    lines: list[str] = []
    for name, value in request.node_selector.items():
        found = {(node["metadata"].get("labels") or {}).get(name) for node in nodes} - {None, value}
        if found:
            lines.append(f"{name} is {', '.join(sorted(map(str, found)))}")
    return f"; here {'; '.join(lines)}" if lines else ""
