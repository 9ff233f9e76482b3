"""One big file to and from Cloud Storage: ours against the client library and others.

Every rival moves the same file in every round, in a new order, each time in a fresh process whose
processor time is counted. The server is the fake-gcs-server on this machine, which shares its
cores and keeps everything in memory: quote the client's processor seconds per GB beside the rate.

    python bench/bench_transfer.py --megabytes 1200 --rounds 5 --out bench/results/transfer.json
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from emulators import GcsEmulator, gcs_emulator  # noqa: E402

BUCKET = "bench-bucket"


def main() -> None:
    """Run the rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="bench/results/transfer.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files lie")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_one(options.one, options.folder)))
        return
    size = options.megabytes * 1_000_000
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, gcs_emulator() as emulator:
        digest = write_random(os.path.join(folder, "source"), size)
        emulator.create_bucket(BUCKET)
        rows = run_rounds(emulator, folder, digest, options.rounds)
    report = summarise(rows, size)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


def run_rounds(
    emulator: GcsEmulator, folder: str, digest: str, rounds: int
) -> list[dict[str, object]]:
    """Let every rival upload and download once a round; the server is emptied in between."""
    dice = random.Random(0)
    rows: list[dict[str, object]] = []
    for number in range(rounds):
        for direction, rivals in (("upload", UPLOADS), ("download", DOWNLOADS)):
            names = [name for name in rivals if available(name)]
            dice.shuffle(names)
            if direction == "download":
                measure(emulator, f"upload/{REFERENCE}", folder)
            for name in names:
                row = measure(emulator, f"{direction}/{name}", folder)
                if direction == "download":
                    assert sha256(os.path.join(folder, "copy")) == digest, name
                    os.unlink(os.path.join(folder, "copy"))
                else:
                    emulator.clear(BUCKET)
                rows.append({"round": number, "direction": direction, "name": name, **row})
            emulator.clear(BUCKET)
    return rows


def measure(emulator: GcsEmulator, which: str, folder: str) -> dict[str, float]:
    """Run one transfer in a process of its own."""
    environment = {
        **os.environ,
        "STORAGE_EMULATOR_HOST": emulator.host,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    command = [sys.executable, __file__, "--one", which, "--folder", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{which}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def measure_one(which: str, folder: str) -> dict[str, float]:
    """Time the transfer `which` in this process, warm: imports and the first request are done."""
    direction, _, name = which.partition("/")
    prepare = (UPLOADS if direction == "upload" else DOWNLOADS)[name]
    path = os.path.join(folder, "source" if direction == "upload" else "copy")
    transfer = prepare(path)
    before, started = processor_seconds(), time.perf_counter()
    transfer()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "processor_seconds": processor_seconds() - before}


def processor_seconds() -> float:
    """Return what this process and its finished children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


Prepare = Callable[[str], Callable[[], object]]


def ours(verb: str, composite: bool | None = None) -> Prepare:
    """Our store."""

    def prepare(path: str) -> Callable[[], object]:
        from kubestill.runtime.stores.gcs import GcsStore

        store = GcsStore(BUCKET, deadline=60, composite=composite)
        list(store.list("warm"))
        if verb == "download":
            return lambda: store.download("object", path)
        return lambda: store.upload(path, "object")

    return prepare


def library(call: Callable[[object, str], object]) -> Prepare:
    """The client library: `call` gets a blob and the path."""

    def prepare(path: str) -> Callable[[], object]:
        from google.cloud import storage

        bucket = storage.Client(project="none").bucket(BUCKET)
        bucket.blob("warm").exists()
        return lambda: call(bucket.blob("object"), path)

    return prepare


def chunked_download(blob: object, path: str) -> None:
    """transfer_manager with threads: its processes would not share the warm connection."""
    from google.cloud.storage import transfer_manager

    transfer_manager.download_chunks_concurrently(
        blob, path, worker_type=transfer_manager.THREAD, max_workers=8
    )


def manager_upload(blob: object, path: str) -> None:
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


UPLOADS: dict[str, Prepare] = {
    "kubestill": ours("upload"),
    "kubestill, parts": ours("upload", composite=True),
    "upload_from_filename": library(lambda blob, path: blob.upload_from_filename(path)),
    "transfer_manager": library(manager_upload),
    "gcsfs": gcsfs("upload"),
}
DOWNLOADS: dict[str, Prepare] = {
    "kubestill": ours("download"),
    "download_to_filename": library(lambda blob, path: blob.download_to_filename(path)),
    "transfer_manager": library(chunked_download),
    "gcsfs": gcsfs("download"),
}
REFERENCE = "kubestill"


def available(name: str) -> bool:
    """Whether a rival is installed."""
    return name != "gcsfs" or importlib.util.find_spec("gcsfs") is not None


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


def summarise(rows: list[dict[str, object]], size: int) -> dict[str, object]:
    """Return medians, with the spread, a rival and direction."""
    table: list[dict[str, object]] = []
    for direction, rivals in (("upload", UPLOADS), ("download", DOWNLOADS)):
        for name in rivals:
            mine = [row for row in rows if (row["direction"], row["name"]) == (direction, name)]
            if not mine:
                continue
            rates = [size / 1e6 / float(str(row["seconds"])) for row in mine]
            used = [float(str(row["processor_seconds"])) / (size / 1e9) for row in mine]
            table.append(
                {
                    "direction": direction,
                    "name": name,
                    "rounds": len(mine),
                    "megabytes_per_second": round(statistics.median(rates), 1),
                    "slowest": round(min(rates), 1),
                    "fastest": round(max(rates), 1),
                    "processor_seconds_per_gigabyte": round(statistics.median(used), 3),
                }
            )
    machine = {"processors": os.cpu_count(), "system": platform.platform(terse=True)}
    return {"megabytes": size / 1e6, "machine": machine, "table": table, "rows": rows}


def print_table(report: dict[str, object]) -> None:
    """Print the summary for people."""
    print(f"{'':10}{'':24}{'MB/s':>8}{'slowest':>9}{'fastest':>9}{'CPU s/GB':>10}")
    for row in report["table"]:  # pyright: ignore
        print(
            f"{row['direction']:10}{row['name']:24}{row['megabytes_per_second']:8}"
            f"{row['slowest']:9}{row['fastest']:9}{row['processor_seconds_per_gigabyte']:10}"
        )


if __name__ == "__main__":
    main()
