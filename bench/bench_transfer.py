"""One big file to and from a bucket: ours against the client libraries and others.

Each transfer happens in a fresh process whose processor time is counted. The servers run on this
machine and share its cores (fake-gcs-server, which keeps everything in memory, and SeaweedFS): read
the client's processor seconds per GB beside the rate. gcsfs and obstore take part where they are
installed; obstore on s3:// only, because it speaks to Cloud Storage in XML and fake-gcs-server does
not.

obstore is not what our stores are built on: it is as fast at sending and slower at fetching, its
conditional writes hold, but it takes bytes that a server damaged for whole, since it checks no sum
of what it reads.

    python -m bench.bench_transfer [--schemes gs s3] [--megabytes 1200] [--rounds 2]
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
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.harness import Clocked, Turns, take_turns
from bench.results import Measure, write
from emulators import S3Server, gcs_emulator, s3_server

if TYPE_CHECKING:
    from google.cloud.storage import Blob

BUCKET = "bench-bucket"
DIRECTIONS = ("upload", "download")
Prepare = Callable[[str], Callable[[], object]]
"""Does what comes before the transfer of the file at a path, and returns the transfer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--megabytes", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files lie")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(transfer_one(told.one, told.folder)))
        return
    found: list[Measure] = []
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        digest = write_random(f"{folder}/source", told.megabytes * 1_000_000)
        for scheme in told.schemes:
            with SERVERS[scheme]() as server:
                bench = Bench(scheme, server, folder, digest)
                found += bench.compare("upload", told.megabytes, told.rounds)
                bench.in_own_process(f"upload/{OURS}")
                found += bench.compare("download", told.megabytes, told.rounds)
    write("transfer", found, keep=len(told.schemes) < len(RIVALS))


@dataclass(frozen=True)
class Server:
    """A server that runs on this machine."""

    environment: Mapping[str, str]
    """What a client of it needs."""
    clear: Callable[[], None]
    """Removes every object."""


@contextmanager
def serve_gs() -> Generator[Server]:
    """Start fake-gcs-server with an empty bucket."""
    with gcs_emulator() as emulator:
        emulator.create_bucket(BUCKET)
        environment = {
            "STORAGE_EMULATOR_HOST": emulator.host,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        yield Server(environment, lambda: emulator.clear(BUCKET))


@contextmanager
def serve_s3() -> Generator[Server]:
    """Start SeaweedFS with an empty bucket."""
    with s3_server() as server:
        server.client.create_bucket(Bucket=BUCKET)

        def clear() -> None:
            server.client.delete_object(Bucket=BUCKET, Key="object")

        place = {"AWS_ENDPOINT_URL": server.host, "AWS_REGION": "us-east-1"}
        yield Server({**S3Server.keys, **place}, clear)


class Bench:
    """The transfers, and the processor seconds that each of them used."""

    def __init__(self, scheme: str, server: Server, folder: str, digest: str):
        self._scheme, self._server, self._folder, self._digest = scheme, server, folder, digest
        self._used: dict[str, list[float]] = defaultdict(list)

    def compare(self, direction: str, megabytes: int, rounds: int) -> list[Measure]:
        """Let all that can do so move the file in one direction, in turns."""
        move = self._upload if direction == "upload" else self._download
        clocked = {name: move(name) for name in RIVALS[self._scheme][direction]}
        turns = take_turns(clocked, rounds, warm_up=0)
        title = f"{self._scheme}://, {direction} of {megabytes / 1000:g} GB"
        return figures(title, direction, turns, self._used, megabytes)

    def _upload(self, name: str) -> Clocked:
        def run() -> float:
            seconds = self.in_own_process(f"upload/{name}")
            self._server.clear()
            return seconds

        return run

    def _download(self, name: str) -> Clocked:
        def run() -> float:
            seconds = self.in_own_process(f"download/{name}")
            assert sha256(f"{self._folder}/copy") == self._digest, name
            os.unlink(f"{self._folder}/copy")
            return seconds

        return run

    def in_own_process(self, which: str) -> float:
        """Return the seconds of one transfer."""
        environment = {**os.environ, **self._server.environment}
        command = [sys.executable, "-m", "bench.bench_transfer", "--folder", self._folder]
        command += ["--one", f"{self._scheme}/{which}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{which}: {done.stderr[-2000:]}")
        seconds, used = json.loads(done.stdout)
        self._used[which].append(used)
        return seconds


def figures(
    title: str, direction: str, turns: Turns, used: Mapping[str, list[float]], megabytes: int
) -> list[Measure]:
    """Return our rate over the best peer's, then everybody's rate and processor seconds."""
    peers = [name for name in turns.seconds if not name.startswith(OURS)]
    best = min(peers, key=turns.median)
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
    scheme, direction, name = which.split("/")
    prepare = RIVALS[scheme][direction][name]
    transfer = prepare(f"{folder}/{'source' if direction == 'upload' else 'copy'}")
    before, started = processor_seconds(), time.perf_counter()
    transfer()
    seconds = time.perf_counter() - started
    return seconds, processor_seconds() - before


def processor_seconds() -> float:
    """Return what this process and its finished children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def ours(scheme: str, verb: str, composite: bool | None = None) -> Prepare:
    """Our store."""

    def prepare(path: str) -> Callable[[], object]:
        from kubestill.runtime.stores.cloud import CloudStore
        from kubestill.runtime.stores.gcs import GcsService
        from kubestill.runtime.stores.s3 import S3Service

        gs = scheme == "gs"
        service = GcsService(BUCKET, composite=composite) if gs else S3Service("s3", BUCKET, "")
        store = CloudStore(service, deadline=60)
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


def obstore(verb: str) -> Prepare:
    """Rust's object_store with its Python door; it checks no sum of what it reads."""

    def prepare(path: str) -> Callable[[], object]:
        import obstore as package
        from obstore.store import S3Store

        host = os.environ["AWS_ENDPOINT_URL"]
        store = S3Store(BUCKET, endpoint=host, client_options={"allow_http": True})
        list(package.list(store, "warm"))

        def upload() -> None:
            with open(path, "rb") as file:
                package.put(store, "object", file)

        def download() -> None:
            with open(path, "wb") as file:
                for chunk in package.get(store, "object").stream(min_chunk_size=8 << 20):
                    file.write(chunk)

        return download if verb == "download" else upload

    return prepare


def botocore(verb: str) -> Prepare:
    """The library under our store, by itself: one request, one connection."""

    def prepare(path: str) -> Callable[[], object]:
        from botocore.session import get_session

        client: Any = get_session().create_client("s3", os.environ["AWS_REGION"])
        client.list_objects_v2(Bucket=BUCKET, Prefix="warm")

        def upload() -> None:
            with open(path, "rb") as file:
                client.put_object(Bucket=BUCKET, Key="object", Body=file)

        def download() -> None:
            body = client.get_object(Bucket=BUCKET, Key="object")["Body"]
            with open(path, "wb") as file:
                for chunk in body.iter_chunks(1 << 20):
                    file.write(chunk)

        return download if verb == "download" else upload

    return prepare


OURS = "kubestill"
SERVERS = {"gs": serve_gs, "s3": serve_s3}
RIVALS: dict[str, dict[str, dict[str, Prepare]]] = {
    "gs": {
        "upload": {
            OURS: ours("gs", "upload"),
            f"{OURS}, parts": ours("gs", "upload", composite=True),
            "upload_from_filename": library(lambda blob, path: blob.upload_from_filename(path)),
            "transfer_manager": library(manager_upload),
        },
        "download": {
            OURS: ours("gs", "download"),
            "download_to_filename": library(lambda blob, path: blob.download_to_filename(path)),
            "transfer_manager": library(chunked_download),
        },
    },
    "s3": {verb: {OURS: ours("s3", verb), "botocore": botocore(verb)} for verb in DIRECTIONS},
}
"""Who takes part, by scheme and direction."""
for verb in DIRECTIONS:
    if importlib.util.find_spec("gcsfs") is not None:
        RIVALS["gs"][verb]["gcsfs"] = gcsfs(verb)
    if importlib.util.find_spec("obstore") is not None:
        RIVALS["s3"][verb]["obstore"] = obstore(verb)


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
