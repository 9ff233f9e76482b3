"""Where bytes live: `open_store` takes a URI and gives a `Store`."""

from kubestill.runtime.stores.base import ABSENT, Cell, Content, Entry, Store
from kubestill.runtime.stores.uris import fetch, join_uri, open_store, read_any, split_uri

__all__ = [
    "ABSENT",
    "Cell",
    "Content",
    "Entry",
    "Store",
    "fetch",
    "join_uri",
    "open_store",
    "read_any",
    "split_uri",
]
