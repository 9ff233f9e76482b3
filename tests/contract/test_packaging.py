"""What a stranger gets: wheel, sdist, and pipelines of their own from either."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

WITH_PACKAGE = """
from kfp import compiler, dsl
from kubestill.components import import_dataset, train_teacher

@dsl.pipeline(name="mine")
def mine(table: str):
    data = import_dataset(source=table, target="price")
    train_teacher(dataset=data.outputs["dataset"], validation=data.outputs["validation"])

compiler.Compiler().compile(mine, "mine.yaml")
"""


def files_of_the_house(root: Path) -> set[str]:
    tracked = subprocess.run(
        ["git", "ls-files", "components", "pipelines"], cwd=root, capture_output=True, text=True
    ).stdout.split()
    return {f"kubestill/{path}" for path in tracked}


@pytest.fixture(scope="module")
def archives(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


def test_the_wheel_holds_every_component_and_pipeline_file(root, archives):
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert files_of_the_house(root) - names == set()


def test_the_wheel_holds_every_module(root, archives):
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    modules = {str(path.relative_to(root / "src")) for path in root.glob("src/kubestill/**/*.py")}
    assert modules - names == set()


def test_the_sdist_holds_every_component_and_pipeline_file(root, archives):
    with tarfile.open(next(archives.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {f"src/{name}" for name in files_of_the_house(root)}
    assert wanted - names == set()


@pytest.fixture(scope="module")
def lock(tmp_path_factory):
    """The versions that are installed here."""
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude", "kubestill"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    path = tmp_path_factory.mktemp("lock") / "lock.txt"
    path.write_text("\n".join(line for line in frozen.splitlines() if re.match(r"^\S+==", line)))
    return str(path)


@pytest.fixture(scope="module")
def environment(lock, tmp_path_factory):
    """Makes a fresh environment with some packages, by the installer that keeps what it fetched."""
    uv = str(Path(sys.executable).with_name("uv"))

    def make(*packages):
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run(
            [uv, "venv", "--quiet", "--python", sys.executable, "venv"], cwd=folder, check=True
        )
        python = str(folder / "venv" / "bin" / "python")
        install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", lock]
        subprocess.run([*install, *packages], check=True)
        return python

    return make


@pytest.fixture(scope="module")
def stranger(archives, environment):
    """The wheel and its client half only."""
    return environment(f"kubestill[client] @ {next(archives.glob('*.whl')).as_uri()}")


@pytest.fixture(scope="module")
def kfp_only(environment):
    return environment("kfp")


def run(python, code, folder):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stranger_compiles_a_pipeline_of_ours_and_one_of_theirs(stranger, tmp_path):
    run(stranger, "import importlib.util as u; assert u.find_spec('torch') is None", tmp_path)
    run(stranger, "from kubestill.cli import main; main(['compile', '--output', 'd'])", tmp_path)
    assert (tmp_path / "d" / "pipelines" / "distillation.yaml").exists()
    run(stranger, WITH_PACKAGE, tmp_path)
    assert "comp-train-teacher" in (tmp_path / "mine.yaml").read_text()


def test_kfp_alone_is_enough_to_use_our_yaml(root, kfp_only, tmp_path):
    run(kfp_only, "import importlib.util as u; assert u.find_spec('kubestill') is None", tmp_path)
    example = str(root / "docs" / "examples" / "your_pipeline.py")
    run(kfp_only, f"import runpy; runpy.run_path({example!r}, run_name='__main__')", tmp_path)
    content = (tmp_path / "your_pipeline.yaml").read_text()
    assert "comp-import-dataset" in content
    assert "comp-train-teacher" in content
