"""A training state of a given size, and everybody who saves it.

The peers are torch.save, torch.distributed.checkpoint's async_save as it is by default, Lightning's
ModelCheckpoint, and Orbax's AsyncCheckpointer where it is installed (it brings JAX).
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
import warnings

import torch
from torch import Tensor, nn

from bench.harness import Clocked, clock
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState


def build(layers: int, width: int, device: str = "cpu") -> tuple[nn.Module, torch.optim.Adam]:
    """Return a model of layers x width^2 parameters, and Adam after its first step."""
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def state_of(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, parameter in enumerate(model.parameters()):
        for slot, tensor in optimizer.state[parameter].items():
            tensors[f"optimizer/{index}/{slot}"] = tensor
    return tensors


def train_step(model: nn.Module, optimizer: torch.optim.Adam, rows: Tensor) -> None:
    loss = nn.functional.mse_loss(model(rows), rows)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def bare_copy(live: dict[str, Tensor]) -> Clocked:
    """Copy into buffers that are there already."""
    copies = {name: torch.zeros_like(tensor) for name, tensor in live.items()}

    def copy() -> None:
        for name, tensor in live.items():
            copies[name].copy_(tensor)

    return clock(copy)


def open_checkpointer(root: str) -> Checkpointer:
    place = resolve_place(root, "bench", "bench", "", owner="bench")
    settings = CheckpointSettings(recovery_seconds=0)
    return Checkpointer.open(place, settings, numerics={}, announce=lambda _: None)


def ours(checkpointer: Checkpointer, live: dict[str, Tensor]) -> Clocked:
    """Clock what training waits for; the writer is idle again at the end."""
    step = 0

    def save() -> float:
        nonlocal step
        step += 1
        view = TrainingState(live, {"step": step})
        started = time.perf_counter()
        checkpointer.save(view, kind="recovery", step=step, epoch=0, examples=0)
        blocked = time.perf_counter() - started
        checkpointer.flush()
        return blocked

    return save


def peers(
    model: nn.Module, optimizer: torch.optim.Adam, live: dict[str, Tensor], folder: str
) -> dict[str, Clocked]:
    """Clock what training waits for when other tools save."""
    found = {
        "torch.save": torch_save(model, optimizer, f"{folder}/torch.pt"),
        "DCP async_save": dcp_async(live, f"{folder}/dcp"),
        "Lightning ModelCheckpoint": lightning(model, optimizer, f"{folder}/lightning"),
    }
    if importlib.util.find_spec("orbax") is not None:
        found["Orbax AsyncCheckpointer"] = orbax_async(live, f"{folder}/orbax")
    return found


def torch_save(model: nn.Module, optimizer: torch.optim.Adam, path: str) -> Clocked:
    def save() -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    return clock(save)


def dcp_async(live: dict[str, Tensor], folder: str) -> Clocked:
    from torch.distributed.checkpoint.state_dict_saver import async_save

    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)

    def save() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        future = async_save(dict(live), checkpoint_id=folder, no_dist=True)
        blocked = time.perf_counter() - started
        future.result()  # pyright: ignore
        return blocked

    return save


def orbax_async(live: dict[str, Tensor], folder: str) -> Clocked:
    import orbax.checkpoint as ocp  # pyright: ignore

    logging.getLogger("absl").setLevel(logging.ERROR)
    checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())  # pyright: ignore
    arrays = {name.replace("/", "."): tensor.numpy() for name, tensor in live.items()}

    def save() -> float:
        started = time.perf_counter()
        checkpointer.save(folder, args=ocp.args.StandardSave(arrays), force=True)  # pyright: ignore
        blocked = time.perf_counter() - started
        checkpointer.wait_until_finished()  # pyright: ignore
        return blocked

    return save


def lightning(model: nn.Module, optimizer: torch.optim.Adam, folder: str) -> Clocked:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    taken: list[float] = []

    class Timed(ModelCheckpoint):
        def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
            started = time.perf_counter()
            super().on_train_batch_end(*args, **kwargs)  # pyright: ignore
            taken.append(time.perf_counter() - started)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], index: int) -> None:
            self.optimizers().step()  # pyright: ignore

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    def save() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            callback = Timed(dirpath=folder, every_n_train_steps=1, save_top_k=1)
            trainer = L.Trainer(
                accelerator="cpu",
                max_epochs=1,
                callbacks=[callback],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(
                Module(),
                torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(1))),
            )
        return taken[-1]

    return save
