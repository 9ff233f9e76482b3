"""The image that every component runs in."""

from kubestill import __version__

IMAGE = f"kubestill:{__version__}"
"""The name in the checked-in YAML; `kubestill compile --image` writes copies with another."""
