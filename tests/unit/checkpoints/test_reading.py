"""State files read back: CRC-32C for the lineage that wrote them, SHA-256 for everybody else."""

from __future__ import annotations

import random
from pathlib import Path

import google_crc32c
import pytest

from kubestill.errors import CorruptData
from kubestill.runtime.checkpoints import checksum, reading
from kubestill.runtime.checkpoints.manifest import StateFile
from kubestill.runtime.checkpoints.reading import Proof, digests, read_verified, verify_file
from kubestill.runtime.stores.local import LocalStore

CONTENT = random.Random(1).randbytes((5 << 20) + 123)


def expected(content: bytes) -> int:
    return google_crc32c.value(content)  # pyright: ignore


def recorded(folder: Path, content: bytes = CONTENT) -> tuple[LocalStore, StateFile]:
    store = LocalStore(str(folder))
    store.put("state", content)
    sha256, crc32c = digests([content])
    return store, StateFile(key="state", rank=0, bytes=len(content), sha256=sha256, crc32c=crc32c)


@pytest.mark.parametrize("native", [True, False], ids=["native", "binding"])
@pytest.mark.parametrize("sizes", [[], [0], [1], [3, 0, 70_000], [3 << 20, 5]], ids=str)
def test_the_checksum_of_pieces_is_that_of_the_whole(
    native: bool, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(checksum, "_native", None)
    pieces = [random.Random(size).randbytes(size) for size in sizes]
    for kind in (bytes, bytearray):  # what cannot be written to goes another way
        crc = 0
        for piece in pieces:
            crc = checksum.extend(crc, memoryview(kind(piece)))
        assert crc == expected(b"".join(pieces))


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1, (3 << 20) - 1, len(CONTENT)])
def test_several_readers_read_what_was_written(
    tmp_path: Path, readers: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MOST_READERS", readers)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    store, file = recorded(tmp_path, CONTENT[:size])
    assert file.crc32c == expected(CONTENT[:size])
    assert read_verified(store, file, proof="crc32c")[:] == CONTENT[:size]


@pytest.mark.parametrize("position", [0, 77, (1 << 20) - 1, 1 << 20, 3 << 20, len(CONTENT) - 1])
@pytest.mark.parametrize("proof", ["crc32c", "sha256"])
def test_a_single_bit_is_found_wherever_it_flips(
    tmp_path: Path, proof: Proof, position: int
) -> None:
    store, file = recorded(tmp_path)
    altered = bytearray(CONTENT)
    altered[position] ^= 1 << position % 8
    store.put("state", altered)
    with pytest.raises(CorruptData, match=f"does not match its {proof}"):
        read_verified(store, file, proof=proof)
    with pytest.raises(CorruptData, match="does not match its sha256"):
        verify_file(store, file)


def test_bytes_changed_on_purpose_pass_only_the_checksum(tmp_path: Path) -> None:
    store, genuine = recorded(tmp_path, CONTENT[:999])
    forged = StateFile(**{**vars(genuine), "sha256": "0" * 64})
    assert read_verified(store, forged, proof="crc32c")[:] == CONTENT[:999]
    with pytest.raises(CorruptData, match="sha256"):
        read_verified(store, forged, proof="sha256")
    with pytest.raises(CorruptData, match="sha256"):
        verify_file(store, forged)


@pytest.mark.parametrize("length", [0, 1, len(CONTENT) - 1, len(CONTENT) + 1])
def test_another_length_is_named(tmp_path: Path, length: int) -> None:
    store, file = recorded(tmp_path)
    store.put("state", (CONTENT + b"x")[:length])
    for read in (
        lambda: read_verified(store, file, proof="crc32c"),
        lambda: verify_file(store, file),
    ):
        with pytest.raises(CorruptData, match=f"has {length} bytes instead of {len(CONTENT)}"):
            read()
