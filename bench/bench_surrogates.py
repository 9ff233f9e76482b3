"""Networks that become solvers, against published surrogates and vectorised pricers.

python -m bench.bench_surrogates [heston] [burgers] [--epochs 30 60 120 240 480]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.harness import clock, take_turns
from bench.results import Measure, write
from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.datasets.dataset import Dataset, DatasetWriter
from kubestill.runtime.datasets.decode import RawLayout, decode
from kubestill.runtime.generation.systems import load_system
from kubestill.runtime.generation.systems.heston import MATURITIES, STRIKES
from kubestill.runtime.generation.systems.implied import implied_deviation
from kubestill.runtime.models.export import load_model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.steps.generate_synthetic import generate_synthetic
from kubestill.runtime.steps.train_student import train_student

HESTON_ROWS, HESTON_TRAIN = 12_000, 10_200
HESTON_REFERENCE = 0.0298
"""Standardised validation RMSE of the published network after 200 epochs (Horvath et al. 2019)."""
BURGERS_ROWS, BURGERS_TRAIN = 1_200, 1_000
BATCH = HESTON_ROWS - HESTON_TRAIN
COS_TERMS = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=["heston", "burgers"], default=["heston", "burgers"]
    )
    parser.add_argument("--epochs", type=int, nargs="+", default=[30, 60, 120, 240, 480])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="keeps rows and checkpoints: a second run goes on there")
    told = parser.parse_args()
    torch.set_num_threads(1)
    with nullcontext(told.folder) if told.folder else tempfile.TemporaryDirectory() as folder:
        if "heston" in told.parts:
            write("surrogates-heston", heston(Path(folder), told.rounds))
        if "burgers" in told.parts:
            for measures in burgers(Path(folder), told.epochs):
                write("surrogates-burgers", measures)


def heston(folder: Path, rounds: int) -> list[Measure]:
    train, test = split(folder / "heston", "heston", HESTON_ROWS, HESTON_TRAIN)
    spread = decoded(train)[1].std(axis=0)
    raw, wanted = decoded(test)

    def scaled_rmse(predicted: np.ndarray) -> float:
        return float(np.sqrt(np.square((predicted - wanted) / spread).mean()))

    started = time.perf_counter()
    control = published_recipe(*decoded(train))
    seconds_control = time.perf_counter() - started
    started = time.perf_counter()
    student = overfit(
        train,
        folder / "heston" / "student",
        network_args={"hidden": [30, 30, 30], "activation": "silu"},
        steps=6_400,
        batch_size=128,
        learning_rate=3e-3,
        settings={"finish_steps": 400, "finish_history": 100, "metric": "rmse", "threads": 1},
    )
    seconds = time.perf_counter() - started
    parameters = student.spec.parameters
    assert parameters == 4_768
    found = student.logits(raw)
    ours, theirs = scaled_rmse(found), scaled_rmse(control(raw))
    peer = f"4,768 parameters, {HESTON_TRAIN:,} / {BATCH:,} rows"
    again = f"their recipe on our rows; published {HESTON_REFERENCE}"
    basis_points = 1e4 * np.abs(found - wanted)
    return [
        Measure(
            name="heston: standardised RMSE on held-out rows",
            value=ours,
            bar=0.010,
            at_least=False,
            unit="std",
            peer=peer,
        ),
        Measure(
            name="heston: the published recipe, run again", value=theirs, unit="std", peer=again
        ),
        Measure(
            name="heston: times smaller an error", value=theirs / ours, unit="times", peer=again
        ),
        Measure(
            name="heston: mean error on held-out rows",
            value=float(basis_points.mean()),
            unit="bp of vol",
            peer=peer,
        ),
        Measure(
            name="heston: largest error on held-out rows",
            value=float(basis_points.max()),
            unit="bp of vol",
            peer=peer,
        ),
        Measure(name="heston: training", value=seconds, unit="s", peer="1 thread"),
        Measure(
            name="heston: training by the published recipe",
            value=seconds_control,
            unit="s",
            peer="1 thread",
        ),
        *pricing(student, test, raw, rounds),
    ]


def pricing(student: Predictor, test: Dataset, raw: np.ndarray, rounds: int) -> list[Measure]:
    """How much faster than two vectorised pricers, at equal batch, one thread, and how far off."""
    exact = load_system("heston")
    inputs: Any = test.to_pandas()[list(exact.domain.names)]
    rows = raw.astype(np.float64)
    turns = take_turns(
        {
            "network": clock(lambda: student.logits(raw)),
            "cos": clock(lambda: cosine_surfaces(rows)),
            "solver": clock(lambda: exact.solve(inputs)),
        },
        rounds,
    )
    wanted = exact.solve(inputs).reshape(len(rows), -1)
    good = float((np.abs(cosine_surfaces(rows) - wanted) < 1e-4).mean())
    off = 1e4 * np.abs(student.logits(raw) - wanted)
    error = f"network off by {off.mean():.1f} bp on average, {off.max():.0f} at the worst of these"
    peer = f"batch of {len(raw):,}, 1 thread; {error}"
    cosine = f"COS, {COS_TERMS} terms, {good:.1%} of vols right to 1 bp; {peer}"
    return [
        Measure(
            name="heston: speed-up over the COS pricer",
            value=turns.ratio("cos", "network"),
            unit="times",
            peer=cosine,
        ),
        Measure(
            name="heston: speed-up over the exact solver",
            value=turns.ratio("solver", "network"),
            unit="times",
            peer=f"saddle-point contour, all vols to 1e-8; {peer}",
        ),
        Measure(
            name="heston: a surface by the network",
            value=turns.median("network") / len(raw) * 1e6,
            unit="us",
            peer=peer,
        ),
    ]


def published_recipe(features: np.ndarray, target: np.ndarray) -> Any:
    """Train as Horvath et al.: ELU 30-30-30, Adam at its defaults, batch 32, RMSE, 200 epochs."""
    torch.manual_seed(0)
    domain = load_system("heston").domain
    bounds: Any = [given for given in domain.inputs]
    low = np.array([given.low for given in bounds])
    high = np.array([given.high for given in bounds])

    def scaled(raw: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((raw - (high + low) / 2) * 2 / (high - low))

    mean, std = target.mean(axis=0, dtype=np.float64), target.std(axis=0, dtype=np.float64)
    x, y = scaled(features), torch.from_numpy((target - mean) / std)
    layers = [nn.Linear(5, 30), nn.ELU(), nn.Linear(30, 30), nn.ELU(), nn.Linear(30, 30), nn.ELU()]
    network = nn.Sequential(*layers, nn.Linear(30, y.shape[1])).double()
    for layer in network[::2]:
        nn.init.xavier_uniform_(layer.weight)  # Keras's default
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7, fused=True)
    for epoch in range(200):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            loss = (network(x[rows]) - y[rows]).square().mean().sqrt()
            loss.backward()
            optimizer.step()
        if epoch % 50 == 49:
            print(f"published recipe, epoch {epoch + 1}: last batch {loss.item():.4f}", flush=True)

    def predict(raw: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(scaled(raw)).numpy() * std + mean

    return predict


def cosine_surfaces(rows: np.ndarray) -> np.ndarray:
    """Price surfaces [N, 8 x 11] by the COS method (Fang & Oosterlee 2008), vectorised.

    Fast, and good wherever a price is well above 1e-10: prices below are lost in rounding.
    """
    v0, rho, sigma, theta, kappa = (column[:, None, None] for column in rows.T)
    maturity = np.asarray(MATURITIES)[None, :, None]
    decay = np.exp(-kappa * maturity)
    mean = (1 - decay) * (theta - v0) / (2 * kappa) - theta * maturity / 2
    variance = (
        sigma * maturity * kappa * decay * (v0 - theta) * (8 * kappa * rho - 4 * sigma)
        + kappa * rho * sigma * (1 - decay) * (16 * theta - 8 * v0)
        + 2 * theta * kappa * maturity * (-4 * kappa * rho * sigma + sigma**2 + 4 * kappa**2)
        + sigma**2 * ((theta - 2 * v0) * decay**2 + theta * (6 * decay - 7) + 2 * v0)
        + 8 * kappa**2 * (v0 - theta) * (1 - decay)
    ) / (8 * kappa**3)
    half = 14 * np.sqrt(np.abs(variance))
    low, high = mean - half, mean + half
    u = np.arange(COS_TERMS)[None, None, :] * np.pi / (high - low)
    z = 1j * u
    beta = kappa - rho * sigma * z
    root = np.sqrt(beta * beta - sigma**2 * (z * z - z))
    g, gone = (beta - root) / (beta + root), np.exp(-root * maturity)
    level = (beta - root) * maturity - 2 * np.log((1 - g * gone) / (1 - g))
    slope = (beta - root) * (1 - gone) / (1 - g * gone)
    transform = np.exp((kappa * theta * level + v0 * slope) / sigma**2 - z * low)
    transform[..., 0] *= 0.5
    surface = np.empty((len(rows), len(MATURITIES), len(STRIKES)))
    for place, strike in enumerate(STRIKES):
        log_strike = np.log(strike)
        top = np.clip(log_strike, low, high)
        # Coefficients of the put, (K - e^x)+, between low and log K.
        angle, end = u * (top - low), np.exp(top)
        exponential = (np.cos(angle) * end - np.exp(low) + u * np.sin(angle) * end) / (1 + u * u)
        with np.errstate(all="ignore"):
            flat = np.where(u == 0, top - low, np.sin(angle) / u)
        payoff = 2 / (high - low) * (strike * flat - exponential)
        put = (transform * payoff).real.sum(axis=2)
        price = put if strike < 1 else put + 1 - strike
        with np.errstate(all="ignore"):
            price = np.log(np.maximum(price, 1e-16))
            surface[:, :, place] = implied_deviation(np.full(price.shape, log_strike), price)
    return (surface / np.sqrt(maturity)).reshape(len(rows), -1)


def burgers(folder: Path, epochs: list[int]) -> Iterator[list[Measure]]:
    """Yield what is known after each budget: the error's trend is the figure."""
    train, test = split(folder / "burgers", "burgers", BURGERS_ROWS, BURGERS_TRAIN)
    raw, wanted = decoded(test)
    measures = [
        Measure(
            name="burgers: FNO as published in 2020, 500 epochs on a GPU",
            value=0.0149,
            unit="",
            peer="Li et al., 256 points; not run again here",
        )
    ]
    for count in epochs:
        started = time.perf_counter()
        student = overfit(
            train,
            folder / "burgers" / f"student-{count}",
            network="fno",
            network_args={"channels": 32, "modes": 16, "places": False},
            epochs=count,
            batch_size=20,
            learning_rate=2e-3,
            settings={
                "loss": "relative_l2",
                "target_scale": "together",
                "metric": "rmse",
                "threads": 1,
            },
        )
        seconds = time.perf_counter() - started
        error = np.linalg.norm(student.logits(raw) - wanted, axis=1)
        relative = float((error / np.linalg.norm(wanted, axis=1)).mean())
        last = count == epochs[-1]
        peer = f"{student.spec.parameters:,} parameters, 1 thread, {seconds:.0f} s"
        measures.append(
            Measure(
                name=f"burgers: relative L2 on held-out rows, {count} epochs",
                value=relative,
                bar=2.5e-3 if last else None,
                at_least=False,
                unit="",
                peer=peer,
            )
        )
        yield measures


def split(folder: Path, system: str, rows: int, train: int) -> tuple[Dataset, Dataset]:
    """Cover the system's domain at random, and cut the rows in two."""
    whole = LocalArtifact(str(folder / "rows"))
    generate_synthetic(dataset=whole, system=system, method="random", rows=rows)
    dataset = Dataset.open(whole.path)
    table = dataset.to_table()
    parts: list[Dataset] = []
    for name, piece in (("train", table.slice(0, train)), ("test", table.slice(train))):
        with DatasetWriter(str(folder / name), dataset.schema) as writer:
            writer.write(piece)
        parts.append(writer.dataset)
    return parts[0], parts[1]


def decoded(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, R] and targets [N, T]."""
    found = decode(dataset, RawLayout(dataset.schema), ("raw", "target"))
    assert found.target is not None
    return found.raw, found.target


def overfit(dataset: Dataset, folder: Path, **parameters: Any) -> Predictor:
    names = ("model", "ledger", "metrics", "report", "summary")
    ports: dict[str, Any] = {name: LocalArtifact(str(folder / name)) for name in names}
    train_student(
        dataset=LocalArtifact(dataset.root, metadata={"kind": "dataset"}),
        mode="overfit",
        checkpoint_uri=str(folder / "checkpoints"),
        **ports,
        **parameters,
    )
    return load_model(str(folder / "model"))


if __name__ == "__main__":
    main()
