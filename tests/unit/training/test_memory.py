"""A pod's own limit counts, whatever its node has left and whichever control groups that has."""

import platform
import subprocess
import sys

import pytest
import torch

from kubestill.runtime.training import memory

MIB = 2**20


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
    ids=["version-2", "version-1"],
)
def test_a_pod_may_take_what_its_limit_leaves(tmp_path, monkeypatch, limit, used):
    monkeypatch.setattr(memory, "_CGROUP", str(tmp_path))
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text(f"{64 * MIB}\n")
    (tmp_path / used).write_text(f"{16 * MIB}\n")
    assert memory.available_bytes(torch.device("cpu")) == 48 * MIB


@pytest.mark.parametrize(
    ("limit", "text"),
    [("memory.max", "max"), ("memory/memory.limit_in_bytes", "9223372036854771712"), ("none", "")],
    ids=["version-2", "version-1", "neither"],
)
def test_without_a_limit_it_is_what_the_machine_has(tmp_path, monkeypatch, limit, text):
    monkeypatch.setattr(memory, "_CGROUP", str(tmp_path))
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text(f"{text}\n")
    assert memory.available_bytes(torch.device("cpu")) > 64 * MIB


STEPS = """
import resource, sys, torch
from concurrent.futures import ThreadPoolExecutor
from kubestill.runtime.base.memory import keep_freed_memory

torch.set_num_threads(1)

def step():
    for _ in range(2):  # all are there at once, and none in the second
        activations = [torch.ones(1 << int(size)) for size in sys.argv[2:]]
        del activations

def steps(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        if sys.argv[1] == "first":
            step()
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(step).result()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(steps(2))
keep_freed_memory()
steps(6)  # by now the heap is as large as it gets
print(min(steps(2) for _ in range(4)))  # the machine may take pages away meanwhile
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("thread", "sizes"), [("first", (23, 20, 24, 21)), ("another", (22,) * 6)])
def test_a_step_uses_the_memory_of_the_step_before(thread, sizes):
    """Activations of 4 to 64 MB are not given back and cleared anew, thousands of pages a step."""
    arguments = [thread, *map(str, sizes)]
    said = subprocess.check_output([sys.executable, "-c", STEPS, *arguments])
    before, after = map(int, said.split())
    # A heap may still grow once.
    assert max(10_000, 10 * after) < before
