import pytest
import torch

from kubestill.errors import InvalidInput
from kubestill.runtime.device import choose_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu_fails_fast(device: str):
    with pytest.raises(InvalidInput, match="0 GPUs are visible"):
        choose_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cpu0"])
def test_unknown_devices(device: str):
    with pytest.raises(InvalidInput, match="use auto, cpu, cuda"):
        choose_device(device)
