import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def kubestill(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process of its own, in an empty folder."""
    folder = tmp_path_factory.mktemp("cwd")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kubestill", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    return run
