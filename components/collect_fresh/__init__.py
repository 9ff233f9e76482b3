"""The `collect-fresh` component."""

from .component import collect_fresh

__all__ = ["collect_fresh"]
