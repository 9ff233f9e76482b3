import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def kubestill(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kubestill", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run
