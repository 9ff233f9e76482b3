"""The registry: who is champion, which rows were judged and trained on, and what happened when."""

from kubestill.runtime.registry.registry import Registry, open_registry
from kubestill.runtime.registry.state import Champion, Claim, Golden, Part, State, Window

__all__ = ["Champion", "Claim", "Golden", "Part", "Registry", "State", "Window", "open_registry"]
