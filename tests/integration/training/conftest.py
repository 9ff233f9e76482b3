import sys
from pathlib import Path
from typing import Any

import pytest

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.steps.import_dataset import import_dataset

# Test modules are imported by path; the helpers beside them, and the fork server's worker, by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits, split into dataset, validation and holdout."""
    root = tmp_path_factory.mktemp("digits")
    names = ("dataset", "validation", "holdout", "report", "summary")
    ports: dict[str, Any] = {n: LocalArtifact(str(root / n)) for n in names}
    import_dataset(source="digits", **ports)
    return root
