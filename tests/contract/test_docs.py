import ast
import re
import runpy
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"\btest_\w+(?:\.py)?")


def test_every_test_named_in_node_dies_exists(root: Path) -> None:
    named = set(TEST.findall((root / "docs" / "node-dies.md").read_text()))
    files = [path for path in (root / "tests").rglob("test_*.py") if path.name != "test_docs.py"]
    known = {path.name for path in files}
    for path in files:
        known.update(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(named) > 20
    assert named - known == set()


def test_every_link_between_documents_resolves(root: Path) -> None:
    broken: list[str] = []
    for page in (root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_settings_page_matches_the_models(root: Path) -> None:
    page = runpy.run_path(str(root / "docs" / "settings.py"))["page"]
    assert (root / "docs" / "settings.md").read_text() == page(), "run `make compile`"


def test_every_path_that_the_architecture_names_exists(root: Path) -> None:
    named = re.findall(r"`([\w/.<>-]+)`", (root / "docs" / "architecture.md").read_text())
    paths = {name for name in named if "/" in name.strip("/") or name.endswith(".py")}
    assert len(paths) > 60
    missing = {
        path
        for path in paths
        if not any(
            (place / path.replace("<name>", "train_teacher")).exists()
            for place in (root, root / "src/kubestill")
        )
    }
    assert missing == set()


def test_the_architecture_draws_the_layers_that_are_enforced(root: Path) -> None:
    with open(root / "pyproject.toml", "rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    enforced = {
        contract["containers"][0]: contract["layers"]
        for contract in contracts
        if contract["type"] == "layers"
    }
    picture = (root / "docs" / "architecture.md").read_text().split("```")[1]
    columns = [re.split("[│├]", line) for line in picture.splitlines() if "│" in line]
    # A layer's name ends at a dash or at a gap; lines without one go on with the sentence above.
    client = [re.split(" ─|  ", cells[1].strip())[0] for cells in columns if len(cells) > 3]
    runtime = [re.split("  ", cells[-2].removeprefix(" "))[0] for cells in columns]
    assert [name for name in client if name] == enforced["kubestill"]
    assert [name for name in runtime if name] == enforced["kubestill.runtime"]
    packages = {path.parent.name for path in root.glob("src/kubestill/runtime/*/__init__.py")}
    assert packages == {name for layer in runtime if layer for name in layer.split(" | ")}


def test_imports_lead_from_file_to_file_of_every_walk(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text()
    walks = re.split(r"\n\*\*(?=[A-Z])", text.split("## Five walks")[1])[1:]
    graph = grimp.build_graph("kubestill", cache_dir=None)
    apart = set[str]()
    for walk in walks:
        files = dict.fromkeys(re.findall(r"`([\w/]+)\.py`", walk))
        modules = [f"kubestill.{file.replace('/', '.')}" for file in files]
        apart |= {
            module
            for number, module in enumerate(modules[1:], 1)
            if not any(
                graph.chain_exists(one, module) or graph.chain_exists(module, one)
                for one in modules[:number]
            )
        }
    assert len(walks) == 5
    # Kubeflow starts a step by its name, and people start commands.
    assert {one for one in apart if not re.search(r"\.(steps|cli)\.", one)} == set()


PACKAGES = sorted(path.parent for path in ROOT.glob("src/kubestill/runtime/*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_opens_with_a_guide_to_its_modules(package: Path) -> None:
    guide = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    named = set(re.findall(r"`([a-z]\w*)`", guide))
    modules = {path.stem for path in package.iterdir()} - {"__init__", "__pycache__"}
    known = modules | {name for path in package.glob("*.py") for name in defined(path)}
    assert named - known == set()
    assert len(named & modules) >= min(len(modules) // 3, 2)


def defined(path: Path) -> set[str]:
    """Return the functions and classes that a module defines or passes on."""
    names = set[str]()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
    return names
