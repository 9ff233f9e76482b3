"""What the documentation shows in Python: it runs, and its pipelines compile."""

import re

from kubestill.assets.packages import Package

PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("cookbook", "reuse", "install", "retraining", "teachers")),
]


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
    compiled = sorted(tmp_path.glob("*.yaml"))
    twice = {path.name: Package(path.read_text()).twice for path in compiled}
    assert not any(twice.values()), f"Kubeflow's driver refuses what comes twice: {twice}"
