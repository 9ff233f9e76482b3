"""Makes the helpers beside the tests importable, and a user's own networks by import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
