"""The image that every component runs in."""

from kubestill import __version__

IMAGE = f"kubestill:{__version__}"
"""As the checked-in YAML names it; `kubestill compile --image` writes copies pinned to another."""
