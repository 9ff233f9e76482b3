"""A pod's own limit counts, whatever its node has left and whichever control groups that has."""

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
