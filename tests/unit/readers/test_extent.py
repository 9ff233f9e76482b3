"""Small files that claim to be large are refused before they are in memory."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from files import SCHEMA

from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.checkpoints.manifest import StateFile
from kubestill.runtime.checkpoints.reading import digests
from kubestill.runtime.checkpoints.restore import read_some
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.datasets.sources import open_source
from kubestill.runtime.generation.given import FilesSettings, Given
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import ColumnEncoding, Encoder
from kubestill.runtime.models.export import SPEC_FILE, export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.retraining.identity import Identities
from kubestill.runtime.stores import open_store

# The memory of whoever reads, besides what importing takes: in a process of its own, since the peak
# of this one is that of every test before.
_WATCHED = """
import resource, sys
from pathlib import Path
from kubestill.errors import CorruptData, InvalidInput
from kubestill.runtime.certification.exceptions import Exceptions
from kubestill.runtime.datasets.sources import open_source
from kubestill.runtime.models.export import load_model
def exceptions(path): Exceptions.from_bytes(Path(path).read_bytes())
read = {"model": load_model, "table": open_source, "exceptions": exceptions}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
for argument in sys.argv[1:]:
    kind, _, path = argument.partition("=")
    try:
        read[kind](path)
        print("read", path)
    except (CorruptData, InvalidInput) as error:
        print("refused", peak() - before, str(error).replace("\\n", " "))
"""


def _model(folder: Path, network: str = "mlp", schema: Schema = SCHEMA, **args: Any) -> None:
    cities = schema.column("colour").categories or ()
    encoder = Encoder(
        [
            ColumnEncoding(name="size", kind="numeric", mean=(1.0,), std=(2.0,)),
            ColumnEncoding(name="colour", kind="categorical", categories=len(cities)),
            ColumnEncoding(name="field", kind="tensor", shape=(1, 2, 2), mean=(0.0,), std=(1.0,)),
        ]
    )
    model = Model.create(
        schema,
        encoder=encoder,
        decoder=Decoder([3.0], [4.0]),
        network=network,
        network_args=args,
    )
    export_model(model, str(folder))


def _field(folder: Path) -> None:
    """Write a small operator from field to field."""
    columns = (
        Column(name="x", kind="tensor", shape=(4096,)),
        Column(name="y", kind="tensor", shape=(4096,), role="target"),
    )
    encoding = ColumnEncoding(name="x", kind="tensor", shape=(4096,), mean=(0.0,), std=(1.0,))
    model = Model.create(
        Schema(columns=columns, task="regression"),
        encoder=Encoder([encoding]),
        decoder=Decoder([0.0] * 4096, [1.0] * 4096),
        network="fno",
        network_args={"channels": 1, "modes": 64, "layers": 1, "projection": 1},
    )
    export_model(model, str(folder))


def _forge(folder: Path, *path: str | int, value: Any) -> str:
    spec = json.loads((folder / SPEC_FILE).read_text())
    at = spec
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (folder / SPEC_FILE).write_text(json.dumps(spec))
    return f"model={folder}"


def _exceptions(path: Path, part: int) -> str:
    """Write a table of exceptions in which one part unpacks to a gigabyte."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    zeros = lzma.compress(bytes(1 << 25), lzma.FORMAT_RAW, filters=filters)
    # A packed stream ends with a zero byte; what lies before it may be repeated.
    parts = [b"\0", b"\0", b"\0"]
    parts[part] = zeros[:-1] * 32 + zeros[-1:]
    head = struct.pack("<QBIII", 1 << 22, True, 1 << 22, len(parts[0]), len(parts[1]))
    path.write_bytes(b"KSX2" + head + b"".join(parts))
    return f"exceptions={path}"


def _bombs(root: Path) -> list[str]:
    """Write files of a few kilobytes that take gigabytes, and return how to read them."""
    many = tuple(f"city{n:03d}" for n in range(40))
    colour = Column(name="colour", kind="categorical", categories=many)
    columns = tuple(colour if c.name == "colour" else c for c in SCHEMA.columns)
    wide = Schema(columns=columns, task="regression")
    _model(root / "hidden")
    _model(root / "deep")
    _model(root / "categories", schema=wide)
    _model(root / "shape")
    _model(root / "both")
    _model(root / "frequencies", "fourier", frequencies=4)
    _model(root / "blocks", "resmlp", width=4, blocks=1)
    _field(root / "layers")
    args = ("network", "args")
    both = root / "both"
    _forge(both, "encoder", "columns", 2, "shape", value=[1, 20_000, 20_000])
    text = "b" * 1_000_000
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 60_000, pa.int32()), pa.array([text]))
    pq.write_table(
        pa.table({"x": repeated}),
        root / "repeated.parquet",
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=1 << 30,
    )
    # A gzip file may be several in a row.
    (root / "packed.csv.gz").write_bytes(gzip.compress(b"1\n" * (1 << 24)) * 16)
    # Half a gigabyte is enough to show; two take this test as long to write as to read.
    pq.write_table(
        pa.table({"x": pa.array(["a" * (1 << 29)], pa.large_string())}),
        root / "cell.parquet",
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )
    return [
        _forge(root / "hidden", *args, "hidden", value=[20_000, 20_000]),
        _forge(root / "deep", *args, "hidden", value=[1] * 100_000),
        _forge(root / "categories", "encoder", "columns", 1, "categories", value=10**12),
        _forge(root / "shape", "encoder", "columns", 2, "shape", value=[1, 20_000, 20_000]),
        _forge(both, "schema", "columns", 2, "shape", value=[1, 20_000, 20_000]),
        _forge(root / "frequencies", *args, "frequencies", value=10**9),
        _forge(root / "blocks", *args, "blocks", value=10**9),
        # Each layer has two matrices of 2 x 64 x 4,096 numbers that are in no file.
        _forge(root / "layers", *args, "layers", value=900),
        f"table={root / 'repeated.parquet'}",
        f"table={root / 'cell.parquet'}",
        f"table={root / 'packed.csv.gz'}",
        _exceptions(root / "levels.bin", 0),
    ]


def test_small_files_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    bombs = _bombs(tmp_path)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.stat().st_size < 600_000
    command = [sys.executable, "-c", _WATCHED, *bombs]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    lines = done.stdout.splitlines()
    assert len(lines) == len(bombs)
    for bomb, line in zip(bombs, lines, strict=True):
        verdict, mebibytes, _ = line.split(" ", 2)
        assert verdict == "refused", bomb
        assert int(mebibytes) < 200, line


@pytest.mark.parametrize("network", ["mlp", "siren", "fourier", "resmlp"])
def test_checking_sizes_imports_no_compiler(network: str, tmp_path: Path) -> None:
    """The meta device would: a second for every step that loads a model."""
    _model(tmp_path, network)
    before = {name for name in sys.modules if name.startswith("sympy")}
    loaded = load_model(str(tmp_path))
    assert {name for name in sys.modules if name.startswith("sympy")} == before
    assert not any(p.is_meta for p in loaded.model.parameters())


def test_a_network_that_needs_real_numbers_is_bounded_while_it_is_built() -> None:
    from kubestill.runtime.models.sizes import build_bounded

    def build(width: int, prove: bool = True) -> torch.nn.Module:
        assert torch.zeros(1).item() == 0  # the meta device has no numbers
        return torch.nn.Linear(width, width)

    def waves(*shape: int) -> torch.nn.Module:
        made = build(3)
        made.register_buffer("waves", torch.zeros(1).expand(*shape))
        return made

    def grid(make: Any) -> torch.nn.Module:
        made = build(3)
        made.grid = make()
        return made

    small = torch.nn.Linear(3, 3)
    made = build_bounded(lambda **_: build(3), small.state_dict())
    assert made.weight.shape == (3, 3)
    waved = waves(3, 3)
    assert build_bounded(lambda **_: waves(3, 3), waved.state_dict()).waves.shape == (3, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for large in (
        lambda **_: build(20_000),
        lambda **_: waves(20_000, 20_000),
        lambda **_: grid(lambda: torch.ones(20_000, 20_000)),
        lambda **_: grid(lambda: torch.zeros([20_000, 20_000], dtype=torch.float64)),
        lambda **_: grid(lambda: torch.full((20_000, 20_000), 1.0)),
        lambda **_: grid(lambda: torch.arange(400_000_000)),
    ):
        with pytest.raises(CorruptData, match="asks for more than"):
            build_bounded(large, small.state_dict())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_tables_that_compress_well_are_read(tmp_path: Path) -> None:
    """One label a million times, in order: a thousand times smaller than its text, and harmless."""
    names = pa.array([f"a city of some length, number {n}" for n in range(50)])
    codes = pa.array(np.repeat(np.arange(50, dtype=np.int32), 20_000))
    table = pa.table({"city": pa.DictionaryArray.from_arrays(codes, names), "x": np.zeros(10**6)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    assert open_source(str(tmp_path / "a.parquet")).rows.count_rows() == 10**6


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"colour": ["red"]}), path := tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes().replace(b"colour", b"colou\xec"))
    with pytest.raises(InvalidInput, match="cannot be read as Parquet"):
        open_source(str(path))


@pytest.mark.parametrize("values", [[b"\xff"], [{"a": 1}]], ids=["bytes", "structs"])
def test_rows_without_a_label_have_labels_of_text(tmp_path: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"colour": values}), path := tmp_path / "a.parquet")
    schema = Schema(columns=(SCHEMA.column("colour"), SCHEMA.column("price")), task="regression")
    with pytest.raises(InvalidInput, match="settings.source = 'colour': holds .* give them as"):
        Given(FilesSettings(source=str(path)), schema, most=9)


def test_a_shard_takes_no_more_memory_than_its_header_may() -> None:
    """A bit turns in the length of a header, or many tensors lie in the same bytes."""
    place = {"dtype": "U8", "shape": [1 << 20], "data_offsets": [0, 1 << 20]}
    many = json.dumps({f"t{number}": place for number in range(300)}).encode()
    for length, content, says in (
        (1 << 40, b"{}" + bytes(1 << 20), "a header of"),
        (len(many), many + bytes(1 << 20), "where another tensor is"),
    ):
        store = open_store("memory://extent/shards")
        store.put("state", whole := struct.pack("<Q", length) + content)
        sha256, crc = digests([whole])
        file = StateFile(key="state", rank=0, bytes=len(whole), sha256=sha256, crc32c=crc)
        for proof in ("crc32c", "sha256"):
            with pytest.raises(CorruptData, match=says):
                read_some(store, file, proof, lambda name: True)


def test_row_identities_that_are_too_many_for_their_bytes_are_refused() -> None:
    def stored(**columns: Any) -> bytes:
        content = io.BytesIO()
        pq.write_table(pa.table(columns), content)
        return content.getvalue()

    zeros = np.zeros(5_000_000, np.uint64)
    with pytest.raises(CorruptData, match="for more rows than that"):
        Identities.from_bytes(stored(a=zeros, b=zeros), source="identities")
    with pytest.raises(CorruptData, match="holds no row identities"):
        Identities.from_bytes(stored(a=["x" * 1_000_000], b=zeros[:1]), source="identities")
    known = Identities(np.arange(9, dtype=np.uint64), zeros[:9])
    assert Identities.from_bytes(known.to_bytes(), source="identities").a.tolist() == [*range(9)]
