import sys
from pathlib import Path

import pytest

# Test modules are imported by path; the helper beside them by name.
sys.path.insert(0, str(Path(__file__).parent))

from small import arguments  # noqa: E402


@pytest.fixture(scope="session")
def run(kubestill, tmp_path_factory) -> tuple[str, Path]:
    """The whole pipeline, undisturbed: (what it printed, its folder)."""
    output = tmp_path_factory.mktemp("runs")
    done = kubestill(*arguments(output))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, output
