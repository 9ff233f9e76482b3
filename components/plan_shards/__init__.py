"""The `plan-shards` component."""

from .component import plan_shards

__all__ = ["plan_shards"]
