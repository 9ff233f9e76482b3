import sys
from pathlib import Path

import pytest

# Test modules are imported by path; the helper beside them by name.
sys.path.insert(0, str(Path(__file__).parent))

from scene import Scene  # noqa: E402


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)
