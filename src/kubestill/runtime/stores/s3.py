"""Amazon S3 and servers like it, MinIO and SeaweedFS among them, through botocore."""

# botocore is not typed.
# pyright: basic

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from kubestill.errors import StoreError
from kubestill.runtime.stores import crc32c
from kubestill.runtime.stores.base import ABSENT, Entry
from kubestill.runtime.stores.s3_client import Connection, Scheme, connect
from kubestill.runtime.stores.s3_conditions import require_conditions
from kubestill.runtime.stores.s3_errors import is_refusal, is_transient, translate
from kubestill.runtime.stores.s3_transfer import (
    Upload,
    checked,
    checksum_of,
    described,
    version_of,
)
from kubestill.runtime.stores.transfer import CHUNK, Garbled, Patience, Payload, read_up_to, receive

_ABANDONED = timedelta(days=1)


class S3Service:
    """Objects below `s3://bucket/prefix` or `minio://bucket/prefix`; `s3_client` says as whom."""

    def __init__(self, scheme: Scheme, bucket: str, prefix: str = ""):
        """Describe the place; nothing is sent yet.

        Args:
            scheme: `minio` for Kubeflow's own store, or any server that is not Amazon's.
            bucket: The bucket's name.
            prefix: Where in it; '/'-separated, without a slash at either end.
        """
        self._scheme: Scheme = scheme
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""
        return f"{self._scheme}://{self._bucket}/{self._prefix}".rstrip("/")

    def is_transient(self, error: Exception) -> bool:
        """See `Service.is_transient`."""
        return is_transient(error)

    def is_refusal(self, error: Exception) -> bool:
        """See `Service.is_refusal`."""
        return is_refusal(error)

    def translate(self, error: Exception, what: str, action: str) -> StoreError | None:
        """See `Service.translate`."""
        return translate(error, f"{self._scheme}://{self._bucket}", what, action)

    def read(self, key: str, most: int | None) -> tuple[bytes, str]:
        """Return (content, ETag); see `Service.read`."""
        answer = self._client.get_object(**self._place(key), ChecksumMode="ENABLED")
        with closing(answer["Body"]) as body:
            content = read_up_to(body.read, most)
        whole = most is None or len(content) <= most
        if whole and checksum_of(answer) not in (None, crc32c.extend(0, content)):
            raise Garbled(f"{key} arrived with another checksum")
        return content, version_of(answer)

    def write(self, key: str, content: bytes, *, expect: str | None) -> str:
        """See `Service.write`."""
        condition = {}
        if expect is not None:
            require_conditions(self._connection, self._bucket, self._prefix)
            condition = {"IfNoneMatch": "*"} if expect == ABSENT else {"IfMatch": f'"{expect}"'}
        checksum = crc32c.extend(0, content)
        answer = self._client.put_object(
            **self._place(key), **described(checksum), **condition, Body=content
        )
        return checked(answer, checksum)

    def send(self, key: str, payload: Payload, patiently: Patience) -> str:
        """See `Service.send`."""
        return Upload(self._client, self._place(key), payload, patiently).run()

    def receive(self, key: str, fd: int, patiently: Patience) -> None:
        """See `Service.receive`."""
        place = self._place(key)

        def head() -> tuple[dict[str, Any], str]:
            found = self._client.head_object(**place, ChecksumMode="ENABLED")
            return found, version_of(found)

        found, version = patiently(head)
        receive(
            partial(self._chunks, place, version),
            fd,
            size=found["ContentLength"],
            checksum=checksum_of(found),
            what=key,
            patiently=patiently,
        )

    def pages(self, prefix: str, patiently: Patience) -> Iterator[Sequence[Entry]]:
        """See `Service.pages`."""
        entries: list[Entry] = []
        more: dict[str, str] = {}
        while True:
            page = patiently(partial(self._page, prefix, more))
            entries += map(self._entry, page.get("Contents", ()))
            if not page.get("NextContinuationToken"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        # SeaweedFS lists folder by folder: `a/x` before `a.txt`.
        yield sorted(entries, key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        """See `Service.delete`."""
        self._client.delete_object(**self._place(key))

    def sweep(self, patiently: Patience) -> None:
        """See `Service.sweep`."""
        place = {"Bucket": self._bucket}
        # To list uploads is a permission of its own, which nobody need grant: a rule of the bucket
        # for incomplete uploads does the same.
        with suppress(StoreError):
            found = patiently(
                lambda: self._client.list_multipart_uploads(**place, Prefix=self._prefix)
            )
            for upload in found.get("Uploads", ()):
                if datetime.now(UTC) - upload["Initiated"] > _ABANDONED:
                    one = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    patiently(partial(self._client.abort_multipart_upload, **place, **one))

    @property
    def _connection(self) -> Connection:
        return connect(self._scheme, self.uri)

    @property
    def _client(self) -> Any:
        return self._connection.client

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _page(self, prefix: str, more: dict[str, str]) -> dict[str, Any]:
        page = self._client.list_objects_v2(
            Bucket=self._bucket, Prefix=self._prefix + prefix, **more
        )
        if "IsTruncated" not in page:
            raise Garbled(f"the list of {self.uri}/{prefix} arrived without its end")
        return page

    def _entry(self, found: dict[str, Any]) -> Entry:
        return Entry(
            key=found["Key"].removeprefix(self._prefix),
            size=found["Size"],
            version=version_of(found),
        )

    def _chunks(self, place: dict[str, str], version: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a span as they come."""
        # The condition keeps spans of two versions of an object from being mixed.
        wanted = {"Range": f"bytes={start}-{end - 1}", "IfMatch": f'"{version}"'}
        left = end - start
        with closing(self._client.get_object(**place, **wanted)["Body"]) as body:
            while left and (chunk := body.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
