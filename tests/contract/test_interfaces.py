"""What a component or pipeline takes and gives is a promise to whoever has compiled it already."""

import json
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
INTERFACES = HERE / "interfaces.txt"
KINDS = ("inputs", "outputs")


def promised() -> dict[str, list[str]]:
    """Return the listed ports by component or pipeline."""
    found: dict[str, list[str]] = {}
    for line in INTERFACES.read_text().splitlines():
        if not line.startswith("  "):
            name = line
        found.setdefault(name, []).append(line)
    return found


def ports(name: str, definition: dict) -> list[str]:
    """Return one line a port: direction, name, type, and the default or whether it may be left out.

    Args:
        name: Folder and name, such as `components/train_teacher`.
        definition: The component in the compiled YAML.
    """
    lines = [name]
    for kind in KINDS:
        given = definition.get(f"{kind[:-1]}Definitions", {})
        for port, part in given.get("artifacts", {}).items():
            optional = " optional" if part.get("isOptional") else ""
            lines.append(f"  {kind} {port}: {part['artifactType']['schemaTitle']}{optional}")
        for port, part in given.get("parameters", {}).items():
            default = f" = {json.dumps(part['defaultValue'])}" if "defaultValue" in part else ""
            optional = " optional" if part.get("isOptional") and not default else ""
            lines.append(f"  {kind} {port}: {part['parameterType']}{default}{optional}")
    return lines


def compiled(path: Path) -> list[str]:
    """Return the interface that a checked-in YAML file has."""
    spec = next(yaml.load_all(path.read_text(), yaml.CSafeLoader))
    name = f"{path.parent.parent.name}/{path.parent.name}"
    # The root of a component leaves out what Kubeflow fills in: its only task has all.
    parts = spec["components"].values() if path.name == "component.yaml" else [spec["root"]]
    (definition,) = parts
    return ports(name, definition)


FILES = {
    f"{path.parent.parent.name}/{path.parent.name}": path
    for path in sorted((HERE.parents[1]).glob("[cp]*s/*/*.yaml"))
    if path.name in {"component.yaml", "pipeline.yaml"}
}


@pytest.mark.parametrize("name", FILES)
def test_an_interface_stays_as_listed(name):
    was, now = promised().get(name, [name]), compiled(FILES[name])
    gone, new = sorted(set(was) - set(now)), sorted(set(now) - set(was))
    assert (gone, new) == ([], []), (
        f"{INTERFACES.name} lists what users rely on; change it only with a line in the changelog"
    )


def test_every_listed_asset_still_exists():
    assert set(promised()) == set(FILES)
