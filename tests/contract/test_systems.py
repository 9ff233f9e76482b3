"""The public door `kubestill.systems`, and the page that leads through it."""

import dataclasses
import importlib
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from kubestill import systems

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "systems.md").read_text()
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_door_shows_what_it_offers_and_nothing_else() -> None:
    assert dir(systems) == sorted(systems.__all__)
    assert all(hasattr(systems, name) for name in systems.__all__)
    given = {
        name
        for name, found in vars(systems).items()
        if isinstance(found, type) and issubclass(found, systems.Input)
    }
    inputs = importlib.import_module("kubestill.runtime.generation.systems.inputs")
    known = {
        name
        for name, found in vars(inputs).items()
        if isinstance(found, type) and issubclass(found, systems.Input)
    }
    assert given == known


def test_the_door_opens_without_torch_and_builds_what_is_built_in(without) -> None:
    code = "from kubestill import systems\n"
    for name in sorted(set(systems.BUILTIN) - {"table", "interpolated-table", "model"}):
        code += f"assert systems.load_system({name!r}).domain.width\n"
    without("torch,kfp,kfp_kubernetes,matplotlib,sklearn", code)


def test_the_page_names_every_argument_of_every_input_and_output() -> None:
    rows = {line.partition(":")[0].strip("| `"): line for line in PAGE.splitlines()}
    for found in (systems.Continuous, systems.Integer, systems.Levels, systems.Choice):
        for field in dataclasses.fields(found):
            assert f"`{field.name}`" in rows[found.__name__], field.name
    for field in dataclasses.fields(systems.Field):
        assert f"`{field.name}`" in rows["Field"], field.name
    for found in (systems.Output, systems.Axis):
        for field in dataclasses.fields(found):
            assert re.search(rf"\b{field.name}(=|`)", PAGE), field.name


def test_every_attribute_of_a_system_is_on_the_page() -> None:
    plain = {"name", "domain", "output", "solve", "schema"}
    public = {name for name in [*systems.System.__annotations__, *vars(systems.System)]}
    named = {name for name in public if not name.startswith("_")} - plain
    table = PAGE.partition("## What else")[2]
    assert named == set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    printed, ran = "", 0
    for kind, content in BLOCK.findall(PAGE):
        if kind == "text":
            assert printed == content
            continue
        named = re.match(r"# (\w+\.py)\n", content)
        if named:
            (tmp_path / named[1]).write_text(content)
            continue
        shown = StringIO()
        with redirect_stdout(shown):
            exec(compile(content, "docs/systems.md", "exec"), {"__name__": "page"})
        printed, ran = shown.getvalue(), ran + 1
    assert ran >= 3
    sys.modules.pop("pendulum", None)
