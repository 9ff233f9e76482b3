"""The `gather-shards` component."""

from .component import gather_shards

__all__ = ["gather_shards"]
