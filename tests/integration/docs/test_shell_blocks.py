"""Every shell block of the documentation runs, page by page and in order, on doubles.

Kubeflow is its double, `gs://` the emulator, and the registry one that a few runs have used.
Commands run in this process, through the same entry point as `kubestill`. What cannot run here is
listed with its reason, and is checked as far as it can be.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pytest
import test_reports  # pyright: ignore[reportMissingImports]
from click.testing import CliRunner
from scene import Scene, rows  # pyright: ignore[reportMissingImports]

from emulators import GcsEmulator
from kubeflow import Kubeflow, kubeflow
from kubestill.assets.packages import load_package
from kubestill.cli import main
from kubestill.cli.run import run as run_command
from kubestill.cli.serve import serve as serve_command
from kubestill.local import default_places, read_parameters
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.retraining.outcomes import conclude
from kubestill.runtime.steps.train_teacher import train_teacher

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if re.search(r"```(sh|bash|shell|console)\n", path.read_text())
)

CHECKED = {
    "run": "a pipeline takes minutes; those in tests/integration run whole ones",
    "serve": "it never ends; tests/integration/serving/test_page.py asks it",
}
"""Commands whose arguments are checked as the command does, before it begins."""
ELSEWHERE = {
    "curl": "asks the server that tests/integration/serving/test_page.py starts",
    "source": "this process is in the environment already",
    ".venv/bin/pre-commit": "changes this checkout's git",
}
"""Other programs that are not run here."""
CODES = {("registry", "check"): {0, 3}, ("runs", "why"): {0, 3}, ("doctor",): {0, 1}}
"""Exit codes beside 0 that the page itself explains; there is no image registry to ask."""


def blocks(page: str) -> list[str]:
    return re.findall(r"```(?:sh|bash|shell|console)\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands(block: str) -> Iterator[list[str]]:
    """Split a block into the words of each command, as a shell does."""
    pending = ""
    for line in block.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on
            continue
        pending = ""
        if words:
            yield words
    assert not pending.strip(), pending


def unquoted(block: str) -> str:
    """Return what of a block stands outside of quotations and comments."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|(?<!\S)#.*", "", block)


@pytest.fixture(scope="module")
def bucket(gcs_server: GcsEmulator) -> GcsEmulator:
    gcs_server.create_bucket("my-bucket")
    return gcs_server


@pytest.fixture
def server(
    tmp_path: Path, bucket: GcsEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kubeflow]:
    """A folder as a reader has it, with doubles around it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    nowhere = str(tmp_path / "no-kube-config")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", nowhere)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.host)
    monkeypatch.setenv("KUBESTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BROWSER", "true")
    with kubeflow() as server:
        monkeypatch.setenv("KUBESTILL_HOST", server.host)
        server.executor = lambda _: None
        yield server
    bucket.clear("my-bucket")


def prepare(page: str, folder: Path) -> dict[str, str]:
    """Lay out what a page takes for granted; returns what its placeholders stand for."""
    if page == "docs/retraining.md":
        scene = Scene(folder, str(folder / "runs/continuous-retraining/registry"))
        scene.started()
        scene.deliver("late.parquet", rows(200, 60, day="2013-02-01"))
        scene.judged(scene.run("2013-03-01"), "reject")
        scene.deliver("last.parquet", rows(300, 60, day="2013-04-01"))
        conclude(scene.registry, scene.run("2013-05-01").run_id, succeeded=False, failure="x: y")
    if page == "docs/checkpoints.md":
        names = ("model", "ledger", "metrics", "report", "summary")
        ports: Any = {name: LocalArtifact(str(folder / "out" / name)) for name in names}
        train_teacher(
            dataset=test_reports.rows(folder / "rows", 0),
            steps=4,
            batch_size=16,
            checkpoint_uri="gs://my-bucket/kubestill",
            **ports,
        )
        return {"PLACE": ports["ledger"].metadata["uri"]}
    return {}


@pytest.mark.parametrize("page", PAGES)
def test_every_shell_block_of_a_page_runs(
    page: str, server: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = prepare(page, tmp_path)
    for block in blocks(page):
        assert not re.search(r"[*?\[\]|…]", unquoted(block)), f"zsh reads this: {block}"
        for words in commands(block):
            if "$RUN" in words:
                names["RUN"] = next(iter(server.runs))
            execute([Template(word).substitute(names) for word in words], names, monkeypatch)


def execute(words: Sequence[str], names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if program == "export" or re.fullmatch(r"[A-Z_]+=\S*", program):
        for word in arguments or [program]:
            name, _, value = word.partition("=")
            names[name] = value
            if program == "export" and name != "KUBESTILL_HOST":  # the double stays
                monkeypatch.setenv(name, value)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in arguments:
            name, sign, _ = word.partition("=")
            pattern = rf"^{name} \?=|\$\({name}\)" if sign else rf"^{name}:"
            assert re.search(pattern, makefile, re.M), f"make {word}"
    elif program == "kubestill":
        ask(arguments)
    else:
        assert program in ELSEWHERE, f"{shlex.join(words)} is run by nobody"


def ask(arguments: list[str]) -> None:
    command = arguments[0]
    if command == "serve":
        serve_command.make_context("serve", arguments[1:])
    elif command == "run" and "--remote" not in arguments:
        given = run_command.make_context("run", arguments[1:]).params
        package = load_package(given["pipeline"], image=given["image"])
        read_parameters(
            package.spec,
            given["assignments"],
            given["params"],
            defaults=default_places(package.spec, "runs"),
        )
    else:
        done = CliRunner().invoke(main, arguments, input="y\n")
        allowed = next(
            (codes for start, codes in CODES.items() if tuple(arguments[: len(start)]) == start),
            {0},
        )
        told = f"{shlex.join(arguments)}\n{done.output}{done.exception or ''}"
        assert done.exit_code in allowed, told
        assert not isinstance(done.exception, Exception) or done.exit_code == 1, told


def test_what_is_not_run_is_needed() -> None:
    used = {words[0] for page in PAGES for block in blocks(page) for words in commands(block)}
    assert set(ELSEWHERE) <= used
    told = {words[1] for page in PAGES for b in blocks(page) for words in commands(b) if words[1:]}
    assert set(CHECKED) <= told
