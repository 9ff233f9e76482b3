"""A collision-avoidance table as a network and a list of exceptions, beside other small forms.

The table to be replaced is Q of every state and action in float32; what it is asked for is the
action. Every form is counted with the exceptions that make it agree in every state, coded alike.

    python -m bench.bench_table [--distances 32] [--angles 37] [--horizon 15] [--steps 6000]
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from sklearn.tree import DecisionTreeClassifier

from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.certification.exceptions import Exceptions
from kubestill.runtime.certification.truth import answers
from kubestill.runtime.datasets.cache import load_decoded
from kubestill.runtime.datasets.dataset import Dataset
from kubestill.runtime.generation.systems.collision_avoidance import ADVISORIES, CollisionAvoidance
from kubestill.runtime.models.export import load_model
from kubestill.runtime.steps.certify_surrogate import certify_surrogate
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.train_student import train_student

TREE_NODE = 3
"""Bytes of a split: one for the feature, one for the level, one for the children or the action."""

Codes = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distances", type=int, default=32)
    parser.add_argument("--angles", type=int, default=37)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--hidden", type=int, nargs="+", default=[40, 40, 40])
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rate", type=float, default=0.004)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", help="keeps rows and checkpoints: a second run goes on there")
    told = parser.parse_args()
    with nullcontext(told.folder) if told.folder else tempfile.TemporaryDirectory() as folder:
        write("table", measure(Path(folder), told))


def measure(folder: Path, told: argparse.Namespace) -> list[Measure]:
    args = {"distances": told.distances, "angles": told.angles, "horizon": told.horizon}
    system = CollisionAvoidance(**args)
    dataset, certificate = certified(folder, args, told)
    size, rows = certificate["size"], certificate["errors"]["data"]["rows"]
    wrong = certificate["errors"]["data"]["disagreements"]
    raw, codes = matrices(dataset, folder / "model")
    assert len(codes) == rows
    table, ours = size["stated_bytes"], size["surrogate_bytes"]
    peer = f"Q-table of {rows:,} states x 5 actions, {table / 1e6:.1f} MB"
    packed = packed_bytes(codes)
    rivals = {
        "packed policy, 3 bits a state": packed,
        "packed policy by xz": len(lzma.compress(codes.astype(np.uint8).tobytes(), preset=9)),
        "Q-table by xz": len(lzma.compress(system.q_table.tobytes(), preset=1)),
    }
    budget = size["weights_bytes"]
    others = {
        "decision tree": decision_tree(raw, codes, budget),
        "multilinear interpolation of Q": coarse_table(system, budget),
    }
    found = [
        Measure(
            name="table: times smaller, exceptions counted",
            value=table / ours,
            bar=1000,
            unit="times",
            peer=peer,
        ),
        Measure(
            name="table: states with the table's action, exceptions applied",
            value=100 * agreement(folder, raw, codes),
            bar=100,
            unit="%",
            peer=peer,
        ),
        Measure(
            name="table: states with the table's action, network alone",
            value=100 * (1 - wrong / rows),
            unit="%",
            peer=peer,
        ),
        Measure(name="table: network", value=budget / 1e3, unit="kB", peer=peer),
        Measure(
            name="table: exceptions", value=size["exceptions_bytes"] / 1e3, unit="kB", peer=peer
        ),
    ]
    for name, count in rivals.items():
        found.append(Measure(name=f"table: {name}", value=table / count, unit="times", peer=peer))
    equal = f"{budget / 1e3:.1f} kB, as the network"
    for name, guess in others.items():
        right = 100 * float((guess == codes).mean())
        whole = budget + len(exceptions_of(raw, guess, codes).to_bytes())
        found += [
            Measure(name=f"table: {name}, agreement", value=right, unit="%", peer=equal),
            Measure(
                name=f"table: {name}, with exceptions",
                value=table / whole,
                unit="times",
                peer=equal,
            ),
        ]
    return found


def certified(folder: Path, args: dict[str, int], told: argparse.Namespace) -> tuple[Dataset, dict]:
    """Generate all states, overfit, certify; return the rows and the certificate."""

    def artifact(name: str, kind: str) -> LocalArtifact:
        return LocalArtifact(str(folder / name), metadata={"kind": kind})

    rows, model = artifact("rows", "dataset"), artifact("model", "model")
    generate_synthetic(dataset=rows, system="collision-avoidance", system_args=args)
    outputs = {name: artifact(name, name) for name in ("ledger", "metrics", "report", "summary")}
    train_student(
        dataset=rows,
        model=model,
        **outputs,  # pyright: ignore
        mode="overfit",
        network="mlp",
        network_args={"hidden": told.hidden, "activation": "silu"},
        steps=told.steps,
        batch_size=told.batch,
        learning_rate=told.rate,
        device=told.device,
        settings={"milestone_every": told.steps / 6, "milestone_unit": "steps"},
        checkpoint_uri=str(folder / "checkpoints"),
    )
    certificate = artifact("certificate", "certificate")
    certify_surrogate(
        model=model,
        dataset=rows,
        certificate=certificate,
        **{name: artifact(f"certified-{name}", name) for name in ("metrics", "report", "summary")},
        exceptions=True,
    )
    with open(folder / "certificate" / "certificate.json", encoding="utf-8") as file:
        return Dataset.open(rows.path), json.load(file)


def matrices(dataset: Dataset, model: Path) -> tuple[np.ndarray, Codes]:
    decoded = load_decoded(dataset, load_model(str(model)).layout)
    assert decoded.target is not None
    return np.asarray(decoded.raw), np.asarray(decoded.target)


def agreement(folder: Path, raw: np.ndarray, codes: Codes) -> float:
    """Ask the stored network and the stored exceptions for every state, as a user would."""
    predictor = load_model(str(folder / "model"))
    table = Exceptions.from_bytes((folder / "certificate" / "exceptions.bin").read_bytes())
    right = 0
    for start in range(0, len(raw), 1 << 16):
        told = answers(predictor, raw[start : start + (1 << 16)])[:, 0].astype(np.int64)
        here = slice(start, start + len(told))
        right += int((table.correct(raw[here], told) == codes[here]).sum())
    return right / len(codes)


def packed_bytes(codes: Codes) -> int:
    bits = (codes[:, None] >> np.arange(3)) & 1
    return len(np.packbits(bits.astype(np.uint8).ravel()))


def decision_tree(raw: np.ndarray, codes: Codes, budget: int) -> Codes:
    """Grow the best tree of as many bytes as the network, on the same columns."""
    leaves = max(2, budget // TREE_NODE // 2)
    tree = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0).fit(raw, codes)
    return tree.predict(raw).astype(np.int64)


def coarse_table(system: CollisionAvoidance, budget: int) -> Codes:
    """Keep a coarser Q-table of as many bytes, and interpolate it at every state."""
    q = system.q_table
    seconds, advisories, distances, angles, _, actions = q.shape
    axes = [np.arange(size, dtype=float) for size in (seconds, distances, angles, angles)]
    share = (budget / 4 / (advisories * actions) / np.prod([len(axis) for axis in axes])) ** 0.25
    kept = [
        np.unique(np.linspace(0, len(axis) - 1, max(2, int(len(axis) * share))).round().astype(int))
        for axis in axes
    ]
    codes = np.empty(q.shape[:-1], np.int64)
    points = np.stack(np.meshgrid(*axes[1:], indexing="ij"), -1).reshape(-1, 3)
    as_code = np.array([system.output.classes.index(name) for name in ADVISORIES])
    for before in range(advisories):
        small = q[np.ix_(kept[0], [before], kept[1], kept[2], kept[3])][:, 0]
        function = RegularGridInterpolator(
            [axis[k] for axis, k in zip(axes, kept, strict=True)], small
        )
        for second in range(seconds):
            where = np.concatenate([np.full((len(points), 1), float(second)), points], 1)
            best = function(where).argmax(1)
            codes[second, before] = as_code[best].reshape(codes.shape[2:])
    return codes.ravel()


def exceptions_of(raw: np.ndarray, guess: Codes, codes: Codes) -> Exceptions:
    rows = np.flatnonzero(guess != codes)
    return Exceptions(raw[rows], codes[rows])


if __name__ == "__main__":
    main()
