"""What names the processor, held against what its kernels really compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kubestill.runtime.base.processor import STEERING, describe_processor

AMD = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
cpu MHz\t\t: 2596.124
cache size\t: 1024 KB

processor\t: 1
vendor_id\t: AuthenticAMD
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
CPU implementer\t: 0x41
CPU variant\t: 0x3
CPU part\t: 0xd0c
"""


@pytest.fixture(autouse=True)
def _nothing_steers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STEERING:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (AMD, "vendor_id AuthenticAMD, cpu family 26, model 2, cache size 1024 KB"),
        (ARM, "CPU implementer 0x41, CPU part 0xd0c, CPU variant 0x3"),
    ],
)
def test_a_processor_is_named_by_what_does_not_change(
    tmp_path: Path, content: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert describe_processor(tmp_path / "cpuinfo") == name


def test_without_that_file_it_has_a_name(tmp_path: Path) -> None:
    assert describe_processor(tmp_path / "none").strip(", ")


@pytest.mark.parametrize("name", STEERING)
def test_what_steers_kernels_is_part_of_the_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = describe_processor()
    monkeypatch.setenv(name, "AVX2")
    assert describe_processor() == f"{before}, {name}=AVX2"


def test_where_torch_reports_the_same_and_computes_other_bits_the_names_differ() -> None:
    """oneDNN's GELU has other bits without AVX-512; torch says AVX512 for both."""
    script = """
import hashlib, torch
from kubestill.runtime.base.processor import describe_processor
x = torch.linspace(-9, 9, 100_001)
bits = hashlib.sha256(torch.nn.functional.gelu(x).numpy().tobytes()).hexdigest()
print(torch.backends.cpu.get_cpu_capability(), bits, describe_processor(), sep="|")
"""
    found = {}
    for isa in ("", "SSE41"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"ONEDNN_MAX_CPU_ISA": isa} if isa else {},
            capture_output=True,
            text=True,
            check=True,
        )
        found[isa] = done.stdout.strip().split("|")
    if found[""][:2] == found["SSE41"][:2]:
        pytest.skip(
            "this processor's GELU has the same bits with and without its later instructions"
        )
    assert found[""][2] != found["SSE41"][2]
