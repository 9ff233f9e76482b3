import re
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
