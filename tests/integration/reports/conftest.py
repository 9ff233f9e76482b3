"""Makes the small trainings, evaluations and certificates of the unit tests importable."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[2] / "unit" / name)
    for name in ("reports", "evaluation", "certification", "models", "retraining")
]
