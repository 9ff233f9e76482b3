"""Does a server honour conditions on writes? Some ignore them; some check, and then write.

Either would let two training runs overwrite each other's ledger without a word. So a server is
asked, once a process, before the first write that depends on it: of several writers at the same
moment at most one may win. That none hears of having won proves nothing against the server: a
gateway that repeats a request passes on the answer to the repetition, which the winner's own
success refuses. The race then counts by what is stored.
"""

# botocore is not typed.
# pyright: basic

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import ClientError

from kubestill.errors import StoreError, StoreUnavailable
from kubestill.runtime.stores.s3_client import Connection
from kubestill.runtime.stores.s3_errors import status_of

WRITERS = 3
RACES = 3
"""How often a race is run that nobody seems to win."""
_REFUSALS = (404, 409, 412)


def require_conditions(connection: Connection, bucket: str, prefix: str) -> None:
    """Return if the server honours `If-None-Match` and `If-Match`.

    Args:
        connection: To the server.
        bucket: Where objects may be written.
        prefix: Where in it; empty, or with a trailing slash.

    Raises:
        StoreError: It does not.
        StoreUnavailable: It refuses every write that has a condition, so that nobody can tell.
    """
    with connection.conditions:
        if connection.honoured:
            return
        place = {"Bucket": bucket, "Key": f"{prefix}.kubestill-probe-{uuid.uuid4().hex}"}
        if wrong := _what_is_wrong(connection.client, place):
            raise StoreError(
                f"{connection.endpoint} does not honour conditions on writes ({wrong}), so that "
                "two writers could overwrite each other unnoticed: use a server that does: Amazon "
                "S3, SeaweedFS 4.17, MinIO RELEASE.2025-09-07, or later"
            )
        connection.honoured.append(True)


def _what_is_wrong(client: Any, place: dict[str, str]) -> str:
    """Return what the server did that it must not do; empty where all is well."""
    try:
        created = _winners(client, place, {"IfNoneMatch": "*"})
        if created > 1:
            return f"of {WRITERS} that created one object at once {created} were told they had"
        version = client.get_object(**place)["ETag"]
        replaced = _winners(client, place, {"IfMatch": version})
        if replaced > 1:
            return f"of {WRITERS} that replaced one version at once {replaced} were told they had"
        client.delete_object(**place)
        told, _ = _race(client, place, {"IfMatch": version})
        if told or _content(client, place) is not None:
            return "it replaced a version that was not there"
        return ""
    except ClientError as error:
        if status_of(error) == 501:
            return "it answers that it has not implemented them"
        raise
    finally:
        client.delete_object(**place)


def _winners(client: Any, place: dict[str, str], condition: dict[str, str]) -> int:
    """Return how many of several simultaneous writers have won, at least one.

    Raises:
        StoreUnavailable: None has, however often they try.
    """
    for _ in range(RACES):
        told, contents = _race(client, place, condition)
        if told or _content(client, place) in contents:
            return max(told, 1)
    raise StoreUnavailable(
        f"{client.meta.endpoint_url} refused {RACES * WRITERS} writes whose condition "
        f"{condition} held: let its gateway pass conditional writes on"
    )


def _content(client: Any, place: dict[str, str]) -> bytes | None:
    try:
        return client.get_object(**place)["Body"].read()
    except ClientError as error:
        if status_of(error) == 404:
            return None
        raise


def _race(client: Any, place: dict[str, str], condition: dict[str, str]) -> tuple[int, list[bytes]]:
    """Return how many of several simultaneous writers were told they had won; what all wrote."""
    barrier = threading.Barrier(WRITERS)
    # A version is the digest of its content: only other content makes another one.
    contents = [uuid.uuid4().hex.encode() for _ in range(WRITERS)]

    def write(content: bytes) -> bool:
        barrier.wait()
        try:
            client.put_object(**place, **condition, Body=content)
        except ClientError as error:
            if status_of(error) in _REFUSALS:
                return False
            raise
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(write, contents)), contents
