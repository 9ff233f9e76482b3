"""Write the README of a component or pipeline from its docstring and metadata.

The layout is that of the Kubeflow community's component repository, so that a component can move
there unchanged. Text below the marker is kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import yaml
from kfp.dsl import structures

from kubestill.assets.catalog import Asset

MARKER = "<!-- custom-content -->"
"""Everything below this line is written by hand."""
_PYTHON_NAMES = {
    "String": "str",
    "Integer": "int",
    "Float": "float",
    "Boolean": "bool",
    "List": "list",
    "Dict": "dict",
}


@dataclass(frozen=True)
class Port:
    """One input or output, ready for a table."""

    name: str
    type: str
    default: str
    description: str


def render_readme(asset: Asset, previous: str = "") -> str:
    """Write the README of one component or pipeline.

    Args:
        asset: What to describe; its folder holds `metadata.yaml` and `OWNERS`.
        previous: The README so far; its hand-written part is kept.
    """
    metadata = _load(asset, "metadata.yaml")
    spec = asset.documented.component_spec
    inputs = [_port(name, part) for name, part in (spec.inputs or {}).items()]
    outputs = [_port(name, part) for name, part in (spec.outputs or {}).items()]
    stability = metadata["stability"]
    lines = [f"# {asset.name.replace('_', ' ').title()}", ""]
    if stability != "stable":
        lines += [f"> **Stability: {stability}**. This asset is not yet stable and may change.", ""]
    # Kubeflow joins the summary line and the rest of a docstring by one newline.
    lines += ["## Overview", "", (spec.description or "").replace("\n", "\n\n", 1), ""]
    if inputs:
        lines += ["## Inputs", "", "| Parameter | Type | Default | Description |"]
        lines += ["|-----------|------|---------|-------------|"]
        lines += [f"| `{p.name}` | `{p.type}` | {p.default} | {p.description} |" for p in inputs]
        lines += [""]
    if outputs:
        lines += ["## Outputs", "", "| Name | Type | Description |"]
        lines += ["|------|------|-------------|"]
        lines += [f"| `{p.name}` | `{p.type}` | {p.description} |" for p in outputs]
        lines += [""]
    lines += ["## Metadata", "", *_metadata_lines(metadata, _load(asset, "OWNERS")), "", MARKER]
    custom = previous.partition(MARKER)[2]
    return "\n".join(lines) + (custom or "\n")


def _port(name: str, part: structures.InputSpec | structures.OutputSpec) -> Port:
    description = " ".join((part.description or "").split()).replace("|", "\\|")
    kind, default = str(part.type), ""
    if isinstance(part, structures.InputSpec) and part.optional:
        default = "not connected" if kind.startswith("system.") else f"`{part.default!r}`"
    # `system.Dataset@0.0.1` as `Dataset`; parameters under their Python names.
    kind = _PYTHON_NAMES.get(kind, kind.removeprefix("system.").partition("@")[0])
    return Port(name, kind, default, description)


def _metadata_lines(metadata: dict[str, Any], owners: dict[str, Any]) -> list[str]:
    lines = [f"- **Name**: {metadata['name']}", f"- **Stability**: {metadata['stability']}"]
    lines += ["- **Dependencies**:", "  - Kubeflow:"]
    for dependency in metadata["dependencies"]["kubeflow"]:
        lines.append(f"    - Name: {dependency['name']}, Version: {dependency['version']}")
    lines += ["- **Tags**:", *(f"  - {tag}" for tag in metadata["tags"])]
    lines += [f"- **Last Verified**: {metadata['lastVerified']:%Y-%m-%d %H:%M:%S%z}"]
    lines += ["- **Owners**:", "  - Approvers:", *(f"    - {who}" for who in owners["approvers"])]
    return lines


def _load(asset: Asset, name: str) -> dict[str, Any]:
    with open(os.path.join(asset.folder, name), encoding="utf-8") as file:
        return yaml.safe_load(file)
