import sys
from pathlib import Path

import pytest

from kubestill.runtime.artifacts import LocalArtifact
from kubestill.runtime.tasks.import_dataset import import_dataset

# Test modules are imported by path; the helpers beside them, and the fork server's worker, by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits, split into dataset, validation and holdout."""
    root = tmp_path_factory.mktemp("digits")
    ports = {n: LocalArtifact(str(root / n)) for n in ("dataset", "validation", "holdout")}
    import_dataset(source="digits", **ports)
    return root
