import re
import runpy
from pathlib import Path

TEST = re.compile(r"\btest_\w+(?:\.py)?")


def test_what_happens_when_a_node_dies_is_shown_by_tests_that_exist(root: Path) -> None:
    named = set(TEST.findall((root / "docs" / "node-dies.md").read_text()))
    files = [path for path in (root / "tests").rglob("test_*.py") if path.name != "test_docs.py"]
    known = {path.name for path in files}
    for path in files:
        known.update(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(named) > 20
    assert named - known == set()


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    broken: list[str] = []
    for page in (root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_page_of_settings_is_the_one_that_the_models_give(root: Path) -> None:
    page = runpy.run_path(str(root / "docs" / "settings.py"))["page"]
    assert (root / "docs" / "settings.md").read_text() == page(), "run `make compile`"
