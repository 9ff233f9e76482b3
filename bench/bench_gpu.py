"""What only a GPU shows, in one go: the tests for it, speed of steps, saves, and MNIST in full.

A large teacher is trained in bf16 and in float32. A small student's step, fused and as a graph
(`step_path`), is held against the same step by torch alone, eager and as a CUDA graph. A save of
1.2 GB that lies on the device is held against a bare copy into pinned memory. Where several GPUs
are visible, all of them label and score, by the bits of one. MNIST after Hinton et al. is
`bench_mnist`, and runs where its files are given.

    python -m bench.bench_gpu [--data FOLDER_OF_IDX_FILES] [--device cpu]

On an H200 it should take less than 8 minutes: it has not been run on a GPU yet. `--device cpu` only
tries the script, on small sizes, and writes no results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from bench import savers
from bench.bench_labelling import make_dataset, make_teacher
from bench.harness import Clocked, clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.base.device import choose_devices
from kubestill.runtime.datasets.decode import decode_features
from kubestill.runtime.generation.labelling import TeacherCopy, label
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.steps.import_dataset import import_dataset
from kubestill.runtime.steps.train_teacher import train_teacher

ROUNDS = 3
SPEED_UP_OF_BF16 = 2.2
SPEED_UP_OF_STUDENT = 5.0
STALL = 1.25
EAGER = "the same step by torch, eager, with its fused Adam"
FEATURES = 64
TEACHER: dict[str, Any] = {"hidden": [4096] * 3, "batch": 4096, "steps": 300}
STUDENT: dict[str, Any] = {"hidden": [64, 64], "batch": 1024, "steps": 3000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of MNIST's four IDX files")
    parser.add_argument("--device", default="cuda")
    told = parser.parse_args()
    trial = told.device == "cpu"
    if not trial and not torch.cuda.is_available():
        sys.exit("bench_gpu needs a CUDA device; --device cpu only tries the script")
    passed = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"])
    if passed.returncode:
        sys.exit("tests/gpu failed: no figure is worth anything before they pass")
    shrink = 16 if trial else 1
    with tempfile.TemporaryDirectory() as folder:
        measures = [
            *steps(Path(folder), told.device, shrink),
            *stall(Path(folder), told.device, 100 // shrink),
            *answers(Path(folder), told.device, 4_000_000 // shrink**2),
        ]
    if trial:
        print(*measures, sep="\n")
        return
    write("gpu", measures)
    if told.data:
        given = ["--data", str(told.data), "--scale", "full", "--device", told.device]
        subprocess.run([sys.executable, "-m", "bench.bench_mnist", *given], check=True)


def steps(root: Path, device: str, shrink: int) -> list[Measure]:
    """Return how fast a large network learns in bf16, and a small one at all."""
    rows = _rows(root)
    large, small = ({**size, "steps": size["steps"] // shrink} for size in (TEACHER, STUDENT))
    large["hidden"] = [width // shrink for width in large["hidden"]]
    places = (root / str(number) for number in range(1000))
    precisions = {
        name: _training(rows, places, large, device, name) for name in ("float32", "bf16")
    }
    by_torch = by_hand(small, device)
    students: dict[str, Clocked] = {
        "kubestill": _training(rows, places, small, device, "float32"),
        "torch": lambda: _of_a_step(by_torch, small["steps"], device),
    }
    if device == "cuda":
        students["graph"] = _training(rows, places, small, device, "float32", "graph")
        replay = captured(by_torch)
        students["graph of torch"] = lambda: _of_a_step(replay, small["steps"], device)
    teachers = take_turns(precisions, ROUNDS)
    taken = take_turns(students, ROUNDS)
    teacher, student = (
        f"{FEATURES}-{'-'.join(map(str, size['hidden']))}-1, batch {size['batch']}"
        for size in (large, small)
    )
    found = [
        Measure(
            name=f"teacher {teacher}: training in bf16 over float32",
            value=teachers.ratio("float32", "bf16"),
            bar=SPEED_UP_OF_BF16,
            unit="times as fast",
            peer="float32, as torch multiplies it by default",
        ),
        Measure(
            name=f"student {student}: step",
            value=taken.ratio("torch", "kubestill"),
            unit="times as fast",
            peer=EAGER,
        ),
    ]
    bars = {"graph": SPEED_UP_OF_STUDENT, "graph of torch": None}
    return found + [
        Measure(
            name=f"student {student}: step as a {name}",
            value=taken.ratio("torch", name),
            bar=bar,
            unit="times as fast",
            peer=EAGER,
        )
        for name, bar in bars.items()
        if name in students
    ]


def stall(root: Path, device: str, millions: int) -> list[Measure]:
    """Return what a save blocks whose state lies on the device."""
    live = savers.state_of(*savers.build(millions, 1000, device))
    pinned = device == "cuda"
    copies = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        for name, tensor in live.items()
    }

    def copy() -> None:
        for name, tensor in live.items():
            copies[name].copy_(tensor, non_blocking=True)
        _wait(device)

    with savers.open_checkpointer(str(root / "saves")) as checkpointer:
        rivals = {"bare copy": clock(copy), "kubestill": savers.ours(checkpointer, live)}
        turns = take_turns(rivals, ROUNDS)
    size = sum(tensor.nbytes for tensor in live.values()) / 1e9
    name = f"{size:.1f} GB on the device: blocking of a save"
    return [
        Measure(
            name=f"{name} over a bare copy",
            value=turns.ratio("kubestill", "bare copy"),
            bar=STALL,
            at_least=False,
            unit="times",
            peer="bare copy into pinned memory",
        ),
        Measure(name=name, value=turns.median("kubestill"), unit="s", peer=""),
    ]


def by_hand(size: dict[str, Any], device: str) -> Callable[[], None]:
    """Return the student's step as torch's own documentation writes it."""
    widths = [FEATURES, *size["hidden"], 1]
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    between = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    network = nn.Sequential(*between).to(device)
    # A graph needs the counter of steps on the device, and then both have it there.
    options: dict[str, Any] = {"capturable": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(network.parameters(), fused=True, **options)
    features = torch.randn(size["batch"], FEATURES, device=device)
    target = features.sin().sum(1, keepdim=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(network(features), target).backward()
        optimizer.step()

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return a step as a CUDA graph, after a warm-up on a stream beside, as torch asks for."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _of_a_step(step: Callable[[], None], times: int, device: str) -> float:
    started = time.perf_counter()
    for _ in range(times):
        step()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def answers(root: Path, device: str, rows: int) -> list[Measure]:
    """Return how much faster all devices answer than one; nothing where there is one.

    On CPUs, which share their cores, two copies only show that it runs.
    """
    places = choose_devices(device) * (2 if device == "cpu" else 1)
    if len(places) < 2:
        print("one GPU is visible: several are not tried")
        return []
    dataset = make_dataset(str(root / "to-label"), rows)
    model = make_teacher(dataset, "cpu").model
    one, *others = (Predictor(deepcopy(model).to(place)) for place in places)
    every = Predictor(one.model)
    every.copies = tuple(other.model for other in others)
    raw = decode_features(dataset, one.layout)
    labelled = {
        name: label([TeacherCopy(each) for each in some], dataset, str(root / name)).fingerprint
        for name, some in {"one": [one], "all": [one, *others]}.items()
    }
    if labelled["one"] != labelled["all"]:
        sys.exit("several GPUs label by other bits than one")
    if not np.array_equal(one.logits(raw), every.logits(raw)):
        sys.exit("several GPUs answer by other bits than one")
    turns = take_turns(
        {
            "label, one": clock(lambda: label([TeacherCopy(one)], dataset, str(root / "one"))),
            "label, all": clock(
                lambda: label(list(map(TeacherCopy, [one, *others])), dataset, str(root / "all"))
            ),
            "score, one": clock(lambda: one.logits(raw)),
            "score, all": clock(lambda: every.logits(raw)),
        },
        ROUNDS,
    )
    return [
        Measure(
            name=f"{what} {rows:,} rows by {len(places)} devices",
            value=turns.ratio(f"{what}, one", f"{what}, all"),
            unit="times as fast",
            peer="one of them",
        )
        for what in ("label", "score")
    ]


def _rows(root: Path) -> LocalArtifact:
    random = np.random.default_rng(0)
    features = random.standard_normal((100_000, FEATURES)).astype(np.float32)
    frame = pd.DataFrame(features, columns=[f"x{i}" for i in range(FEATURES)])
    frame.assign(y=np.sin(features).sum(1)).to_parquet(root / "rows.parquet")
    names = ("dataset", "validation", "holdout", "report", "summary")
    ports: dict[str, Any] = {
        n: LocalArtifact(str(root / n), metadata={"kind": "dataset"}) for n in names
    }
    import_dataset(source=str(root / "rows.parquet"), target="y", **ports)
    return ports["dataset"]


def _training(
    rows: LocalArtifact,
    places: Any,
    size: dict[str, Any],
    device: str,
    precision: str,
    path: str = "auto",
) -> Clocked:
    """Return what trains anew through the component, and returns seconds a step."""

    def run() -> float:
        root = next(places)
        names = ("model", "ledger", "metrics", "report", "summary")
        ports: dict[str, Any] = {name: LocalArtifact(str(root / name)) for name in names}
        with redirect_stdout(StringIO()):
            train_teacher(
                dataset=rows,
                network_args={"hidden": size["hidden"]},
                batch_size=size["batch"],
                steps=size["steps"],
                device=device,
                settings={"precision": precision, "step_path": path, "choose": "last"},
                **ports,
            )
        scores = ports["metrics"].metadata
        return scores["seconds"] / scores["steps"]

    return run


if __name__ == "__main__":
    main()
