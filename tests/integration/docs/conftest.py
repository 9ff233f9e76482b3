"""Makes the registry of the unit tests, and their small training run, importable."""

import sys
from pathlib import Path

UNIT = Path(__file__).parents[2] / "unit"
sys.path[:0] = [str(UNIT / "retraining"), str(UNIT / "reports")]
