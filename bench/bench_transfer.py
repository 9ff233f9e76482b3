"""One big file to and from Cloud Storage: ours against the client library and others.

Each transfer happens in a fresh process whose processor time is counted. The server is the
fake-gcs-server on this machine, which shares its cores and keeps everything in memory: read the
client's processor seconds per GB beside the rate. gcsfs takes part where it is installed.

    python -m bench.bench_transfer [--megabytes 1200] [--rounds 2]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bench.harness import Clocked, Turns, take_turns
from bench.results import Measure, write
from emulators import GcsEmulator, gcs_emulator

if TYPE_CHECKING:
    from google.cloud.storage import Blob

BUCKET = "bench-bucket"
Prepare = Callable[[str], Callable[[], object]]
"""Does what comes before the transfer of the file at a path, and returns the transfer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files lie")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(transfer_one(told.one, told.folder)))
        return
    with tempfile.TemporaryDirectory(dir=told.folder) as folder, gcs_emulator() as emulator:
        digest = write_random(f"{folder}/source", told.megabytes * 1_000_000)
        emulator.create_bucket(BUCKET)
        bench = Bench(emulator, folder, digest)
        uploads = take_turns({name: bench.upload(name) for name in UPLOADS}, told.rounds, warm_up=0)
        bench.in_own_process(f"upload/{OURS}")
        downloads = take_turns(
            {name: bench.download(name) for name in DOWNLOADS}, told.rounds, warm_up=0
        )
    found = [
        *figures("upload", uploads, bench.used, told.megabytes),
        *figures("download", downloads, bench.used, told.megabytes),
    ]
    write("transfer", found)


class Bench:
    """The transfers, and the processor seconds that each of them used."""

    def __init__(self, emulator: GcsEmulator, folder: str, digest: str):
        self._emulator, self._folder, self._digest = emulator, folder, digest
        self.used: dict[str, list[float]] = defaultdict(list)

    def upload(self, name: str) -> Clocked:
        def run() -> float:
            seconds = self.in_own_process(f"upload/{name}")
            self._emulator.clear(BUCKET)
            return seconds

        return run

    def download(self, name: str) -> Clocked:
        def run() -> float:
            seconds = self.in_own_process(f"download/{name}")
            assert sha256(f"{self._folder}/copy") == self._digest, name
            os.unlink(f"{self._folder}/copy")
            return seconds

        return run

    def in_own_process(self, which: str) -> float:
        environment = {
            **os.environ,
            "STORAGE_EMULATOR_HOST": self._emulator.host,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        command = [sys.executable, "-m", "bench.bench_transfer", "--one", which]
        command += ["--folder", self._folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{which}: {done.stderr[-2000:]}")
        seconds, used = json.loads(done.stdout)
        self.used[which].append(used)
        return seconds


def figures(
    direction: str, turns: Turns, used: Mapping[str, list[float]], megabytes: int
) -> list[Measure]:
    """Return our rate over the best peer's, then everybody's rate and processor seconds."""
    peers = [name for name in turns.seconds if not name.startswith(OURS)]
    best = min(peers, key=turns.median)
    title = f"{direction} of {megabytes / 1000:g} GB"
    found = [
        Measure(
            name=f"{title}: ours over the best peer",
            value=turns.ratio(best, OURS),
            bar=1.0,
            unit="times as fast",
            peer=best,
        )
    ]
    for name in turns.seconds:
        spent = statistics.median(used[f"{direction}/{name}"]) / (megabytes / 1000)
        speed = megabytes / turns.median(name)
        found += [
            Measure(name=f"{title}: {name}", value=speed, unit="MB/s", peer=""),
            Measure(name=f"{title}: {name}, processor", value=spent, unit="s/GB", peer=""),
        ]
    return found


def transfer_one(which: str, folder: str) -> tuple[float, float]:
    """Return wall and processor seconds of a transfer in this process, which is warm by then."""
    direction, _, name = which.partition("/")
    prepare = (UPLOADS if direction == "upload" else DOWNLOADS)[name]
    transfer = prepare(f"{folder}/{'source' if direction == 'upload' else 'copy'}")
    before, started = processor_seconds(), time.perf_counter()
    transfer()
    seconds = time.perf_counter() - started
    return seconds, processor_seconds() - before


def processor_seconds() -> float:
    """Return what this process and its finished children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def ours(verb: str, composite: bool | None = None) -> Prepare:
    """Our store."""

    def prepare(path: str) -> Callable[[], object]:
        from kubestill.runtime.stores.cloud import CloudStore
        from kubestill.runtime.stores.gcs import GcsService

        store = CloudStore(GcsService(BUCKET, composite=composite), deadline=60)
        list(store.list("warm"))
        if verb == "download":
            return lambda: store.download("object", path)
        return lambda: store.upload(path, "object")

    return prepare


def library(call: Callable[[Any, str], object]) -> Prepare:
    """The client library: `call` gets a blob and the path."""

    def prepare(path: str) -> Callable[[], object]:
        from google.cloud import storage

        bucket = storage.Client(project="none").bucket(BUCKET)
        bucket.blob("warm").exists()
        return lambda: call(bucket.blob("object"), path)

    return prepare


def chunked_download(blob: Blob, path: str) -> None:
    """transfer_manager with threads: its processes would not share the warm connection."""
    from google.cloud.storage import transfer_manager

    transfer_manager.download_chunks_concurrently(
        blob, path, worker_type=transfer_manager.THREAD, max_workers=8
    )


def manager_upload(blob: Blob, path: str) -> None:
    """transfer_manager's upload of files (the emulator has no XML multipart uploads)."""
    from google.cloud.storage import transfer_manager

    results = transfer_manager.upload_many(
        [(path, blob)], worker_type=transfer_manager.THREAD, raise_exception=True
    )
    assert results == [None]


def gcsfs(verb: str) -> Prepare:
    """Fsspec's file system."""

    def prepare(path: str) -> Callable[[], object]:
        import gcsfs as package

        files = package.GCSFileSystem(
            token="anon", endpoint_url=os.environ["STORAGE_EMULATOR_HOST"]
        )
        files.exists(f"{BUCKET}/warm")
        if verb == "download":
            return lambda: files.get_file(f"{BUCKET}/object", path)
        return lambda: files.put_file(path, f"{BUCKET}/object")

    return prepare


OURS = "kubestill"
UPLOADS: dict[str, Prepare] = {
    OURS: ours("upload"),
    f"{OURS}, parts": ours("upload", composite=True),
    "upload_from_filename": library(lambda blob, path: blob.upload_from_filename(path)),
    "transfer_manager": library(manager_upload),
}
DOWNLOADS: dict[str, Prepare] = {
    OURS: ours("download"),
    "download_to_filename": library(lambda blob, path: blob.download_to_filename(path)),
    "transfer_manager": library(chunked_download),
}
if importlib.util.find_spec("gcsfs") is not None:
    UPLOADS["gcsfs"] = gcsfs("upload")
    DOWNLOADS["gcsfs"] = gcsfs("download")


def write_random(path: str, size: int) -> str:
    """Write incompressible bytes and return their SHA-256."""
    dice, digest = random.Random(0), hashlib.sha256()
    with open(path, "wb") as file:
        for start in range(0, size, 1 << 22):
            chunk = dice.randbytes(min(1 << 22, size - start))
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def sha256(path: str) -> str:
    """Return the file's digest."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
