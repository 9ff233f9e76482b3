import json
import sys

import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.base.device import choose_device, choose_devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu_fails_fast(device: str):
    with pytest.raises(InvalidInput, match="sees 0 GPUs here"):
        choose_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cpu0"])
def test_unknown_devices(device: str):
    with pytest.raises(InvalidInput, match="use auto, cpu, cuda"):
        choose_device(device)


@pytest.mark.parametrize("count", ["1", ""], ids=["asked-for", "not-asked-for"])
def test_accelerators_of_the_pipeline_are_no_cpu(monkeypatch, count):
    """As Kubeflow starts a task of our pipelines; `auto` would hide a GPU that is not there."""
    given = {"inputs": {"parameterValues": {"pipelinechannel--accelerators": count}}}
    monkeypatch.setattr(sys, "argv", ["executor_main", "--executor_input", json.dumps(given)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not count:
        assert choose_device("auto").type == "cpu"
        return
    with pytest.raises(InvalidInput, match="accelerators = '1'.*leave accelerators empty"):
        choose_device("auto")


@pytest.mark.parametrize(
    ("name", "rank", "devices"),
    [
        ("auto", None, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", None, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", None, ["cuda:1"]),
        ("cpu", None, ["cpu"]),
        ("auto", "2", ["cuda:2"]),
    ],
)
def test_all_visible_gpus_or_the_one_that_is_named(monkeypatch, name, rank, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert [str(one) for one in choose_devices(name)] == devices
