"""Keep bytes: `open_store` takes a URI and returns a `Store`.

Reading order: `base` (the protocol every store implements), `memory` (the shortest one), `uris`
(from a URI to a store), `local` with `local_cell` and `files`, then `cloud`, which `gcs` and `s3`
share, with `transfer` (bulk bytes) and `retry`. Modules named after a service translate it.

Why not obstore: its conditional writes hold and it is about as fast (`bench/bench_transfer.py`),
but it verifies no checksum of what it downloads, and a conditional write goes in one request,
however large it is.
"""

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
