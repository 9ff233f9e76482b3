import sys
from pathlib import Path

# Test modules are imported by path; the helpers beside them by name.
sys.path.insert(0, str(Path(__file__).parent))
