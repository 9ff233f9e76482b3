"""Every place where bytes become values is one whose bounds somebody looked at."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kubestill
from kubestill.errors import InvalidInput
from kubestill.runtime.datasets.sources import open_source

SOURCES = Path(kubestill.__file__).parent

CALLS = re.compile(
    r"\b((?:json|yaml|pickle|marshal|torch|np|safetensors\.torch)\.\w*load\w*"
    r"|(?:lzma|zlib|gzip|bz2|zipfile|tarfile|base64)"
    r"\.(?:decompress\w*|open|\w+File|\w+Decompressor|b64decode)"
    r"|(?:pq|pacsv|pads|pd|feather|orc|ipc)\.(?:read_\w+|open_\w+|ParquetFile|dataset)"
    r"|Image\.open|\w+\.json)\("
)
"""What parses or unpacks."""

OWN = "what this process wrote itself, or a process that it started"
KUBEFLOW = "an answer of the Kubernetes or Kubeflow that the user's credentials are for"
EXTENT = "Parquet, once `check_extent` has compared what it claims with the bytes there are"

# What reads a file, an answer or an argument that somebody else may have written goes through
# `base.values`, `assets.reading` or `check_extent`; a new place of another kind belongs here.
BOUNDED = {
    "assets/reading.py": {"yaml.load_all": "counted while it is read"},
    "assets/readme.py": {"yaml.safe_load": "a component's metadata in the wheel"},
    "assets/workflow.py": {"json.loads": "a pipeline that was read by `assets.reading`"},
    "client/api.py": {"response.json": KUBEFLOW},
    "client/files.py": {"tarfile.open": "of a stream that ends after `LARGEST` bytes"},
    "client/kube.py": {"json.loads": KUBEFLOW},
    "forkserver.py": {"json.loads": OWN},
    "local/backend.py": {"json.loads": "outputs of a step; see `_read_output`"},
    "local/containers.py": {"json.loads": "what the container engine says"},
    "local/processes.py": {"json.loads": OWN},
    "runtime/base/device.py": {"json.loads": "an argument of this process"},
    "runtime/base/kubernetes.py": {"json.loads": KUBEFLOW},
    "runtime/base/values.py": {"json.loads": "the reader that bounds everything from a store"},
    "runtime/certification/exceptions.py": {
        "lzma.LZMADecompressor": "never more than what was declared, and that is bounded"
    },
    "runtime/checkpoints/checkpointer.py": {"json.loads": OWN},
    "runtime/checkpoints/peers.py": {"json.loads": "what the other processes of this run say"},
    "runtime/checkpoints/resuming.py": {"json.loads": OWN},
    "api.py": {"json.load": OWN},
    "runtime/datasets/csvs.py": {"pacsv.read_csv": "`_Unpacked`, or a file of that size"},
    "runtime/datasets/files.py": {"gzip.open": "the first 4,096 bytes"},
    "runtime/datasets/pixels.py": {"Image.open": "the header, whose number of pixels is bounded"},
    "runtime/datasets/sources.py": {"pads.dataset": EXTENT, "pq.read_metadata": EXTENT},
    "runtime/datasets/cache.py": {"np.load": "mapped, from a folder that is this user's own"},
    "runtime/datasets/extent.py": {"pq.ParquetFile": "the check itself; texts stay dictionaries"},
    "runtime/datasets/parts.py": {"pq.ParquetFile": EXTENT, "pq.read_metadata": EXTENT},
    "runtime/models/bands.py": {"json.loads": OWN},
    "runtime/models/foreign/huggingface.py": {
        "safetensors.torch.load": "views of the bytes that are there",
    },
    "runtime/models/foreign/packing.py": {
        "zipfile.ZipFile": "not compressed, and held against the bytes that are there"
    },
    "runtime/models/foreign/recognise.py": {"zipfile.ZipFile": "only the names are read"},
    "runtime/models/foreign/skops_file.py": {
        "zipfile.ZipFile": "what it unpacks to is counted, and arrays are held against their size"
    },
    "runtime/models/export.py": {"safetensors.torch.load": "views of the bytes that are there"},
    "runtime/retraining/identity.py": {"pq.ParquetFile": EXTENT},
    "runtime/retraining/kubeflow.py": {"answer.json": KUBEFLOW},
    "runtime/retraining/kubeflow_runs.py": {"json.loads": "of at most `_LARGEST` bytes"},
    "runtime/retraining/notices.py": {"base64.b64decode": "a key of this process's environment"},
    "runtime/serving/protocol.py": {"ipc.open_stream": "of a request's bytes, not compressed"},
    "runtime/stores/crc32c.py": {"base64.b64decode": "eight characters of a header"},
    "runtime/stores/s3_secret.py": {"base64.b64decode": KUBEFLOW},
    "runtime/training/processes.py": {
        "json.loads": OWN,
        "pickle.load": "from the process that started this one, through a pipe",
    },
    "step.py": {"json.loads": "an argument of this process"},
    "supervision.py": {"json.loads": OWN},
}


def test_every_place_that_parses_or_unpacks_says_what_bounds_it() -> None:
    found = {
        str(path.relative_to(SOURCES)): calls
        for path in SOURCES.rglob("*.py")
        if (calls := set(CALLS.findall(path.read_text())))
    }
    assert found == {path: set(reasons) for path, reasons in BOUNDED.items()}


PACKED = gzip.compress(b"a,b\n" + b"1,x\n" * 1000)


@pytest.mark.parametrize("ending", [".csv.gz", ""])
@pytest.mark.parametrize(
    "content",
    [PACKED[:-20], PACKED[:2], PACKED[:12], PACKED[:15] + b"zzzz" + PACKED[19:]],
    ids=["cut", "magic", "head", "damaged"],
)
def test_a_damaged_packed_table_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    (tmp_path / f"rows{ending}").write_bytes(content)
    with pytest.raises(InvalidInput, match="rows.*(cannot be read|is neither Parquet nor text)"):
        open_source(str(tmp_path / f"rows{ending}"))


@pytest.mark.parametrize("note", ["[" * 100_000, "[]", '{"index_columns": 5}', "{"])
def test_a_note_of_pandas_that_is_none_is_passed_over(tmp_path: Path, note: str) -> None:
    table = pa.table({"a": [1]}).replace_schema_metadata({"pandas": note})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert open_source(str(tmp_path / "rows.parquet")).rows.schema.names == ["a"]
