"""Weights that another trainer wrote, as torch.distributed.checkpoint does, and what it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from kubestill.errors import InvalidInput
from kubestill.runtime.models.networks import mlp
from kubestill.runtime.models.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
ARGS = {"network_args": {"hidden": [4], "norm": "batch"}, "batch_size": 64}


def network() -> nn.Module:
    torch.manual_seed(7)
    made = mlp(1, 1, hidden=[4], norm="batch")
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.25)
    return made


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("spread", [False, True], ids=["one file", "two"])
def test_training_begins_with_what_dcp_wrote(
    train: Any, tmp_path: Path, prefix: str, spread: bool
) -> None:
    wanted = network().state_dict()
    files = {f"{prefix}{name}": 1 + i % 2 for i, name in enumerate(wanted)} if spread else None
    save(
        {f"{prefix}{name}": tensor for name, tensor in wanted.items()},
        storage_writer=HuggingFaceStorageWriter(str(tmp_path / "dcp"), files),
        no_dist=True,
    )
    assert len([*(tmp_path / "dcp").glob("*.safetensors")]) == 1 + spread
    # At a rate that moves no weight by more than that.
    told = {
        "steps": 1,
        "learning_rate": 1e-30,
        "settings": {"initial_weights": str(tmp_path / "dcp")},
    }
    out = train(**ARGS, **told)
    found = weights_of(out)
    for name, tensor in wanted.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(found[f"network.{name}"], tensor, rtol=0, atol=1e-20), name


def test_pieces_are_put_together(tmp_path: Path) -> None:
    """As `save_distributed=True` leaves them: each rank's rows in a file of its own."""
    wanted = network().state_dict()
    for rank in range(2):
        held, begins = dict[str, torch.Tensor](), dict[str, Any]()
        for name, tensor in wanted.items():
            half = len(tensor) // 2 if tensor.dim() else 0
            if tensor.dim() and half:
                held[name] = tensor[rank * half : half + rank * (len(tensor) - half)].clone()
                begins[name] = {"saved_offsets": [rank * half] + [0] * (tensor.dim() - 1)}
            elif not rank:
                held[name], begins[name] = tensor, {"saved_offsets": [0] * tensor.dim()}
        told = {"DCP_SHARDING_INFO": json.dumps(begins)}
        save_file(held, tmp_path / f"shard-0000{rank}-model-00001-of-00001.safetensors", told)
    made = mlp(1, 1, hidden=[4], norm="batch")
    load_weights(made, str(tmp_path), "settings.initial_weights")
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    next(tmp_path.glob("shard-00001*")).unlink()
    with pytest.raises(InvalidInput, match="does not have all of the network's 0.weight"):
        load_weights(made, str(tmp_path), "settings.initial_weights")


def test_dcp_reads_a_checkpoint(train: Any, tmp_path: Path) -> None:
    train(**ARGS, steps=4)
    state = max((tmp_path / "store").rglob("state-*.safetensors"), key=lambda path: str(path))
    wanted = {
        f"model/network.{name}": torch.zeros_like(t) for name, t in network().state_dict().items()
    }
    wanted["optimizer/0.weight/exp_avg"] = torch.zeros(4, 1)
    load(wanted, storage_reader=HuggingFaceStorageReader(str(state.parent)), no_dist=True)
    saved = load_file(state)
    for name, tensor in wanted.items():
        assert torch.equal(tensor, saved[name]), name
        assert name.endswith("num_batches_tracked") or tensor.any()


def test_weights_that_do_not_fit_are_refused_before_training(train: Any, tmp_path: Path) -> None:
    held = network().state_dict()
    held["0.weight"], held["1.wieght"] = torch.zeros(5, 1), held.pop("1.weight")
    (tmp_path / "dcp").mkdir()
    save_file(held, tmp_path / "dcp" / "model.safetensors")
    with pytest.raises(InvalidInput) as caught:
        train(**ARGS, settings={"initial_weights": str(tmp_path / "dcp")})
    said = str(caught.value)
    assert "'0.weight': has [5, 1], and the network's [4, 1]; mend" in said
    assert "does not have all of the network's 1.weight; did you mean" in said
    assert "'1.wieght'" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("pickled", "says"), [(True, "a pickle, which runs"), (False, "has no")])
def test_pickles_are_not_read(train: Any, tmp_path: Path, pickled: bool, says: str) -> None:
    (tmp_path / "dcp").mkdir()
    if pickled:
        save(network().state_dict(), checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    with pytest.raises(InvalidInput, match=f"settings.initial_weights.*{says}"):
        train(**ARGS, settings={"initial_weights": str(tmp_path / "dcp")})
