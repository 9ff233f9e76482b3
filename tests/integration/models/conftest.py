"""Shares the models of the unit tests; exporting one takes seconds, which is too long there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "models"))
