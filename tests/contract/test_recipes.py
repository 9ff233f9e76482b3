"""What the documentation shows: its pipelines compile, its commands name parameters that exist."""

import re
import shlex

import yaml

from kubestill.assets.packages import load_package
from kubestill.pipelines import __all__ as PIPELINES

PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("cookbook", "reuse", "install", "retraining", "teachers")),
]
NAMES = {name.replace("_", "-") for name in PIPELINES}


def blocks(root, language: str) -> list[tuple[str, str]]:
    """Every fenced block: where it stands, and what it says."""
    found = []
    for page in PAGES:
        text = (root / page).read_text()
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)):
            found.append((f"{page} {number}", block))
    return found


def test_every_pipeline_compiles(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = blocks(root, "python")
    assert len(shown) >= 7
    for number, (where, code) in enumerate(shown):
        # kfp reads the source of components from a file.
        path = tmp_path / f"snippet_{number}.py"
        path.write_text(code)
        before = set(tmp_path.glob("*.yaml"))
        exec(compile(code, str(path), "exec"), {"__name__": path.stem})
        if "kfp" in code:
            assert set(tmp_path.glob("*.yaml")) > before, f"{where} compiles nothing"


def commands(root) -> list[tuple[str, list[str]]]:
    """Every command about one of our pipelines: where it stands, and its words."""
    found = []
    for where, block in blocks(root, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].endswith("kubestill") and NAMES & set(words):
                found.append((where, words))
    return found


def test_every_command_names_parameters_that_exist(root):
    shown = commands(root)
    assert len(shown) >= 8
    parameters = {
        name: set(load_package(name).spec.root.input_definitions.parameters) for name in NAMES
    }
    for where, words in shown:
        (pipeline,) = NAMES & set(words)
        pairs = list(zip(words, words[1:], strict=False))
        given = [value.partition("=")[0] for option, value in pairs if option == "-p"]
        for path in [value for option, value in pairs if option == "--params"]:
            given += yaml.safe_load((root / path).read_text())
        unknown = set(given) - parameters[pipeline]
        assert not unknown, f"{where}: {shlex.join(words)}"
