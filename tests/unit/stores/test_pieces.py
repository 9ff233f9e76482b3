"""The parts that stores are made of: patience, checksums, keys and URIs."""

from __future__ import annotations

import subprocess
import sys

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubestill.errors import InvalidInput, StoreUnavailable
from kubestill.runtime.stores import crc32c, open_store, split_uri
from kubestill.runtime.stores.retry import retrying
from kubestill.runtime.stores.transfer import Buffers
from kubestill.runtime.stores.uris import DEADLINE


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Flaky:
    """An operation that fails until a given time."""

    def __init__(self, clock: Clock, until: float, error: Exception):
        self.clock, self.until, self.error = clock, until, error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.clock.now < self.until:
            raise self.error
        return "done"


def patiently(flaky: Flaky, deadline: float, **more: object) -> str:
    return retrying(
        flaky,
        transient=lambda error: isinstance(error, ConnectionError),
        deadline=deadline,
        what="get gs://bucket/x",
        sleep=flaky.clock.sleep,
        clock=flaky.clock,
        **more,  # pyright: ignore
    )


def test_a_store_that_refuses_for_a_minute_is_survived_by_default() -> None:
    flaky = Flaky(Clock(), 60.0, ConnectionError("refused"))

    assert patiently(flaky, DEADLINE) == "done"
    assert flaky.clock.now < 65
    assert flaky.calls < 40


def test_patience_ends_and_says_what_it_waited_for() -> None:
    flaky = Flaky(Clock(), 1e9, ConnectionError("refused"))

    with pytest.raises(StoreUnavailable, match=r"get gs://bucket/x: gave up .* refused") as caught:
        patiently(flaky, 30.0)
    assert caught.value.__cause__ is flaky.error
    assert 20 < flaky.clock.now <= 30


def test_what_will_not_pass_is_not_retried() -> None:
    flaky = Flaky(Clock(), 1e9, ValueError("wrong"))

    with pytest.raises(ValueError, match="wrong"):
        patiently(flaky, 30.0)
    assert flaky.calls == 1


def test_progress_renews_patience() -> None:
    flaky = Flaky(Clock(), 300.0, ConnectionError("refused"))

    assert patiently(flaky, 30.0, progress=lambda: flaky.clock.now // 20) == "done"


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_checksums_combine(pieces: list[bytes]) -> None:
    whole = 0
    for piece in pieces:
        whole = crc32c.combine(whole, crc32c.extend(0, piece), len(piece))

    assert whole == google_crc32c.value(b"".join(pieces))


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 130), st.integers(0, 130))
def test_buffers_read_like_their_concatenation(parts: list[bytes], start: int, size: int) -> None:
    buffers, joined = Buffers(parts), b"".join(parts)

    assert buffers.size == len(joined)
    assert buffers.read(start, size) == joined[start : start + size]


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("gs://b/a/c.json", ("gs://b/a", "c.json")),
        ("gs://b/c.json", ("gs://b", "c.json")),
        ("minio://b/a/c.json", ("minio://b/a", "c.json")),
        ("/a/b/c", ("/a/b", "c")),
        ("/c", ("/", "c")),
        ("c", (".", "c")),
        ("a/b/", ("a", "b")),
        ("file:///a/c", ("file:///a", "c")),
        ("file:///c", ("file:///", "c")),
        ("memory://name/c", ("memory://name", "c")),
    ],
)
def test_split_uri(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts


@pytest.mark.parametrize("uri", ["gs://bucket", "gs://bucket/", "", "/", "memory://name"])
def test_split_uri_wants_a_name(uri: str) -> None:
    with pytest.raises(InvalidInput, match="uri"):
        split_uri(uri)


@pytest.mark.parametrize(
    "uri",
    ["", "az://bucket/x", "gs://", "s3:///x", "minio://", "gs:///x", "file://host/x", "ftp://x"],
)
def test_unknown_uris_say_what_is_supported(uri: str) -> None:
    with pytest.raises(InvalidInput, match="supported: a local path") as caught:
        open_store(uri)
    assert caught.value.problems[0].value == uri


@pytest.mark.parametrize(
    ("uri", "root"),
    [("/data/x/", "/data/x"), ("file:///data/my%20x", "/data/my x"), ("gs://b/p/", "gs://b/p")],
)
def test_roots_are_normalised(uri: str, root: str) -> None:
    assert open_store(uri).uri == root


def test_neither_torch_nor_the_cloud_is_imported_for_local_files() -> None:
    code = (
        "import sys; from kubestill.runtime.stores import open_store; open_store('/tmp');"
        "unwanted = ('torch', 'numpy', 'kfp', 'google.cloud.storage', 'botocore');"
        "print([name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
