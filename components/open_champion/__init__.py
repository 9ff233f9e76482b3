"""The `open-champion` component."""

from .component import open_champion

__all__ = ["open_champion"]
