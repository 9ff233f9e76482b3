"""What the tests that kill trainings share."""

import hashlib
import json
from pathlib import Path


def copy_of(data: Path, root: Path) -> Path:
    """Make a fresh root on the same rows."""
    root.mkdir()
    for name in ("dataset", "validation"):
        (root / name).symlink_to(data / name)
    return root


def digest(root: Path) -> tuple[str, int]:
    """Identify the exported model, and say which milestone it is."""
    weights = hashlib.sha256((root / "model" / "model.safetensors").read_bytes()).hexdigest()
    return weights, json.loads((root / "model" / "training.json").read_text())["chosen"]["step"]
