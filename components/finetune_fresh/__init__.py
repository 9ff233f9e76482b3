"""The `finetune-fresh` component."""

from .component import finetune_fresh

__all__ = ["finetune_fresh"]
