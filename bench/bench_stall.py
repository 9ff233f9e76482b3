"""How long training stands still for a save, against a bare memory copy and against other tools.

    python bench/bench_stall.py [--millions 10 100] [--rounds 5] [--peers] [--out FILE]

The state is a model of so many million float32 parameters with Adam's two moments. All methods take
turns within a round, and the ratio to the bare copy is taken within the round, so that a noisy
machine disturbs all alike; the table shows medians over the rounds. Every method starts with its
writer idle.

`small` trains a real network whose state is 12 MB and saves it every 20 steps, in alternating
windows with and without; `restore` reads the newest checkpoint from a warm local file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kubestill.runtime.checkpoints import Checkpoint, load_state
from kubestill.runtime.checkpoints.checkpointer import Checkpointer
from kubestill.runtime.checkpoints.place import resolve_place
from kubestill.runtime.checkpoints.settings import CheckpointSettings
from kubestill.runtime.checkpoints.state import TrainingState

Peer = Callable[[], float]
"""Saves once; returns the seconds it blocked, and comes back when its writer is idle."""


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    results: dict[str, object] = {"threads": options.threads, "torch": torch.__version__}
    for millions in options.millions:
        folder = tempfile.mkdtemp(dir=options.folder, prefix="bench-stall-")
        try:
            rows = stall(millions * 1_000_000, options.rounds, folder, peers=options.peers)
        finally:
            shutil.rmtree(folder)
        print_table(f"{millions}M parameters with Adam ({12 * millions} MB)", rows)
        results[f"{millions}M"] = rows
    folder = tempfile.mkdtemp(dir=options.folder, prefix="bench-small-")
    try:
        results["small"] = small(folder, options.rounds)
    finally:
        shutil.rmtree(folder)
    print("\n12 MB state every 20 steps:", json.dumps(results["small"]))
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Blocking time of a save, in bare copies")
    parser.add_argument("--millions", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where checkpoints go; default: the temporary folder")
    parser.add_argument("--peers", action="store_true", help="also the other tools")
    parser.add_argument("--out", help="write the figures as JSON")
    return parser.parse_args()


def stall(parameters: int, rounds: int, folder: str, *, peers: bool) -> dict[str, dict[str, float]]:
    """Return median seconds and ratio to the bare copy of every method."""
    model, optimizer = build(parameters)
    live = state_of(model, optimizer)
    methods: dict[str, Peer] = {"bare copy": bare_copy(live)}
    checkpointer = open_checkpointer(f"{folder}/kubestill")
    methods["kubestill"] = ours(checkpointer, live)
    if peers:
        warnings.filterwarnings("ignore", module="torch.distributed")
        methods["torch.save"] = torch_save(model, optimizer, f"{folder}/torch.pt")
        methods["DCP async_save"] = dcp_async(live, f"{folder}/dcp")
        methods["Lightning ModelCheckpoint"] = lightning(model, optimizer, f"{folder}/lightning")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in range(rounds + 1):
        for name, save in methods.items():
            blocked = save()
            if round_number:  # the first one allocates
                seconds[name].append(blocked)
    behind = checkpointer.report()["seconds_behind"]
    checkpointer.finish({})
    checkpointer.close()
    rows = {
        name: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(
                a / b for a, b in zip(taken, seconds["bare copy"], strict=True)
            ),
        }
        for name, taken in seconds.items()
    }
    rows["kubestill"]["seconds_behind"] = behind
    rows["restore (verified)"] = restore(f"{folder}/kubestill", live, rows["bare copy"]["seconds"])
    return rows


def build(parameters: int) -> tuple[nn.Module, torch.optim.Adam]:
    width = 1000
    layers = [nn.Linear(width, width, bias=False) for _ in range(parameters // width**2)]
    model = nn.Sequential(*layers)
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


def bare_copy(live: dict[str, Tensor]) -> Peer:
    copies = {name: torch.zeros_like(tensor) for name, tensor in live.items()}

    def save() -> float:
        started = time.perf_counter()
        for name, tensor in live.items():
            copies[name].copy_(tensor)
        return time.perf_counter() - started

    return save


def open_checkpointer(root: str) -> Checkpointer:
    place = resolve_place(root, "bench", "bench", "", owner="bench")
    settings = CheckpointSettings(recovery_seconds=0)
    return Checkpointer.open(place, settings, numerics={}, announce=lambda _: None)


def ours(checkpointer: Checkpointer, live: dict[str, Tensor]) -> Peer:
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


def restore(root: str, live: dict[str, Tensor], copy: float) -> dict[str, float]:
    with open_checkpointer(root) as checkpointer:
        entry = checkpointer.ledger.newest_first[0]
        taken: list[float] = []
        for _ in range(3):
            started = time.perf_counter()
            state = load_state(Checkpoint.of(checkpointer.ledger, entry))
            taken.append(time.perf_counter() - started)
        assert all(torch.equal(state.tensors[name], live[name]) for name in live)
    seconds = statistics.median(taken)
    return {"seconds": seconds, "ratio": seconds / copy}


def torch_save(model: nn.Module, optimizer: torch.optim.Adam, path: str) -> Peer:
    def save() -> float:
        started = time.perf_counter()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        return time.perf_counter() - started

    return save


def dcp_async(live: dict[str, Tensor], folder: str) -> Peer:
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


def lightning(model: nn.Module, optimizer: torch.optim.Adam, folder: str) -> Peer:
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


def small(folder: str, rounds: int) -> dict[str, float]:
    """Return what saving 12 MB every 20 steps costs a real training, as a share of its time."""
    model = nn.Sequential(nn.Linear(500, 1000), nn.ReLU(), nn.Linear(1000, 500))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    rows, steps = torch.randn(256, 500), 100

    def window(checkpointer: Checkpointer | None, offset: int) -> float:
        started = time.perf_counter()
        for step in range(offset + 1, offset + steps + 1):
            loss = nn.functional.mse_loss(model(rows), rows)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if checkpointer and step % 20 == 0:
                view = TrainingState(state_of(model, optimizer), {"step": step})
                checkpointer.save(view, kind="milestone", step=step, epoch=0, examples=step)
        return time.perf_counter() - started

    ratios: list[float] = []
    with open_checkpointer(folder) as checkpointer:
        window(checkpointer, 0)
        for number in range(2 * rounds):
            plain = window(None, 0)
            ratios.append(window(checkpointer, (number + 1) * steps) / plain)
        checkpointer.flush()
        report = checkpointer.report()
    return {
        "overhead": statistics.median(ratios) - 1,
        "low": sorted(ratios)[len(ratios) // 4] - 1,
        "high": sorted(ratios)[3 * len(ratios) // 4] - 1,
        "milliseconds_a_save": 1000 * report["seconds_per_save"],
    }


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':28}{'blocked s':>10}{'x copy':>8}")
    for name, row in rows.items():
        print(f"{name:28}{row['seconds']:10.3f}{row['ratio']:8.2f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
