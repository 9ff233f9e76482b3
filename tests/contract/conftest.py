import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run Python code in a fresh process in which some packages cannot be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "block.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def __init__(self, names): self.names = names\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in self.names:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked by this test', name=name)\n"
        "sys.meta_path.insert(0, Blocker(sys.argv[1].split(',')))\n"
        "exec(sys.argv[2])\n"
    )

    def run(blocked: str, code: str) -> str:
        done = subprocess.run(
            [sys.executable, str(folder / "block.py"), blocked, code],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
