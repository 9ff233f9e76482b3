"""Every kind of system with every kind of network: is any verdict of a certificate false?

python -m bench.bench_zoo [--evaluations 100000000] [--seeds 3] [--only proven]

Proofs are held against an adversary that evaluates the deployed network and the solver until the
evaluations are spent; enumerated errors against every point, answered one batch size after the
other; the bounds of samples against the share that is known from 300,000 points.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom

from bench.results import Measure, write
from kubestill.runtime.certification import CertificateSettings
from kubestill.runtime.certification.errors import off_grid, on_domain, sampled_errors
from kubestill.runtime.certification.proof import prove
from kubestill.runtime.certification.truth import Truth, answers
from kubestill.runtime.datasets.decode import decode_features

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit" / "certification"))
from zoo import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    FINITE,
    NETWORKS,
    SYSTEMS,
    Adversary,
    build,
    pairs,
)

CHUNK = 200_000
"""Evaluations of a proof before the next one's turn."""
DENSE = 300_000
"""Points that tell the share of a domain within a tolerance."""
DRAWN, TRIALS = 200, 400
"""Random points of a certificate, and certificates."""
CHANCE = 1e-6
"""Probability at which a bound that holds would be called false."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=100_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--only", default="", help="proven, enumerated or sampled")
    told = parser.parse_args()
    parts = {
        "proven": lambda: proven(told.evaluations, told.seeds, told.boxes),
        "enumerated": lambda: enumerated(told.seeds),
        "sampled": lambda: sampled(),
    }
    for name, measure in parts.items():
        if told.only in ("", name):
            write("zoo", measure(), keep=True)


def proven(evaluations: int, seeds: int, boxes: int) -> list[Measure]:
    """Prove every pair of system and network, then let the adversary take turns at all of them."""
    cases = []
    for seed in range(seeds):
        for name, network in pairs():
            system = SYSTEMS[name]()
            predictor = build(system, NETWORKS[network], seed=seed)
            proof = prove(predictor, system, boxes=boxes, seconds=60, gap=0.02)
            adversary = Adversary(predictor, system, seed=seed)
            cases.append((f"{name}, {network}, seed {seed}", proof, adversary))
    finite = [case for case in cases if math.isfinite(case[1].upper)]
    start, spent = time.monotonic(), 0
    # Where solving is slow, the time is worth more elsewhere: turns are of equal seconds.
    while spent < evaluations:
        for _, _, adversary in finite:
            began, before = time.monotonic(), adversary.evaluations
            while time.monotonic() - began < 0.2 and adversary.evaluations - before < CHUNK:
                adversary.search(CHUNK // 4)
            spent += adversary.evaluations - before
            if spent >= evaluations:
                break
    wrong = [name for name, proof, adversary in finite if adversary.worst > proof.upper]
    for name in wrong:
        print("FALSE", name)
    ratios = [a.worst / p.upper for _, p, a in finite if p.status == "proven"]
    peer = f"{len(SYSTEMS)} systems, {len(NETWORKS)} networks, {seeds} seeds"
    took = f"{time.monotonic() - start:.0f} s, one thread"
    return [
        Measure(
            name="proven: bounds held against the adversary", value=len(finite), unit="", peer=peer
        ),
        Measure(
            name="proven: of these, proofs that reached their gap of 2%",
            value=len(ratios),
            unit="",
            peer=f"within {boxes:,} boxes",
        ),
        Measure(
            name="proven: bounds that a point exceeds",
            value=len(wrong),
            bar=0,
            at_least=False,
            unit="",
            peer="the adversary's points",
        ),
        Measure(
            name="proven: evaluations of the adversary",
            value=spent,
            bar=1e8,
            unit="points",
            peer=took,
        ),
        Measure(
            name="proven: largest share of a bound that a point reaches",
            value=max(ratios),
            bar=1,
            at_least=False,
            unit="",
            peer="proofs that reached their gap",
        ),
        Measure(
            name="proven: median share of a bound that a point reaches",
            value=float(np.median(ratios)),
            unit="",
            peer="proofs that reached their gap",
        ),
    ]


def enumerated(seeds: int) -> list[Measure]:
    """Answer every point of finite domains in batches of other sizes, and compare."""
    verdicts = wrong = points = moved = 0
    for seed in range(seeds):
        for make in FINITE.values():
            system = make()
            counts = system.domain.points(rows=1 << 20)
            every = system.domain.grid(np.arange(math.prod(counts.values())), counts)
            for network in NETWORKS:
                predictor = build(system, NETWORKS[network], seed=seed)
                raw = decode_features(every, predictor.layout)
                if not np.isfinite(predictor.logits(raw)).all():
                    continue
                truth = Truth(system, predictor)
                seen, right = on_domain(truth, counts), truth.solve(every)
                verdicts += 1
                for size, step in ((1, max(1, len(raw) // 500)), (7, 1), (8192, 1)):
                    some = raw[::step]
                    parts = [
                        answers(predictor, some[at : at + size]) for at in range(0, len(some), size)
                    ]
                    told = np.concatenate(parts)
                    points += len(some)
                    if seen.told is not None:
                        apart, said = told[:, 0] != seen.told[::step], np.zeros(len(some))
                    else:
                        apart = np.abs(told - right[::step]).max(1)
                        said = np.full(len(some), seen.errors.max())
                    moved += int((apart > said).any())
                    # float32 rounds otherwise in another batch, and the certificate says so.
                    rounding = 1e-5 * (np.abs(right).max() + said)
                    wrong += int((apart > said + rounding).any() and seen.told is None)
    peer = f"{len(FINITE)} finite domains, {len(NETWORKS)} networks, {seeds} seeds"
    return [
        Measure(name="enumerated: verdicts", value=verdicts, unit="", peer=peer),
        Measure(
            name="enumerated: verdicts that a point exceeds",
            value=wrong,
            bar=0,
            at_least=False,
            unit="",
            peer=f"{points:,} answers in batches of 1, 7 and 8,192 rows",
        ),
        Measure(
            name="enumerated: exceeded in the last bits, in a batch of another size",
            value=moved,
            unit="",
            peer="as docs/certificate.md says",
        ),
    ]


def sampled() -> list[Measure]:
    """Certify by few samples, many times, what is known from 300,000 points."""
    settings = CertificateSettings(confidence=0.95, tolerance=1.0)
    statements, false, trials = 0, 0, 0
    rates: list[float] = []
    for name in SYSTEMS:
        system = SYSTEMS[name]()
        for network in ("trained tanh", "untrained relu", "saturating"):
            predictor = build(system, NETWORKS[network])
            every = off_grid(Truth(system, predictor), DENSE, seed=7)
            few = off_grid(Truth(system, predictor), DRAWN * TRIALS, seed=11)
            largest = float(max(every.errors.max(), few.errors.max()))
            truths = {q: float(np.quantile(every.errors, q)) for q in (0.5, 0.9)}
            tolerance = truths[0.9]
            above = float((every.errors > tolerance).mean())
            held = {"share": 0, "mean": 0, "largest": 0, **{str(q): 0 for q in truths}}
            for start in range(0, DRAWN * TRIALS, DRAWN):
                part = slice(start, start + DRAWN)
                drawn = replace(few, errors=few.errors[part], means=few.means[part])
                told = sampled_errors(
                    drawn,
                    settings.model_copy(update={"tolerance": tolerance}),
                    largest=largest,
                    classes=False,
                )
                assert told.above_tolerance is not None
                assert told.mean_bound is not None
                held["share"] += told.above_tolerance.bound >= above
                held["mean"] += told.mean_bound >= float(every.means.mean())
                within = float((every.errors <= told.max).mean())
                held["largest"] += within >= told.covered_by_max
                for quantile in told.quantiles:
                    if quantile.quantile in truths and quantile.bound is not None:
                        bound = quantile.bound
                        held[str(quantile.quantile)] += bound >= truths[quantile.quantile]
            for count in held.values():
                statements += 1
                trials += TRIALS
                rates.append(count / TRIALS)
                false += bool(binom.cdf(count, TRIALS, settings.confidence) < CHANCE)
    return [
        Measure(
            name="sampled: kinds of statements, each in 400 certificates of 200 points",
            value=statements,
            unit="",
            peer=f"{trials:,} statements in all",
        ),
        Measure(
            name="sampled: kinds that hold less often than they say",
            value=false,
            bar=0,
            at_least=False,
            unit="",
            peer="95% confidence, by a binomial test at 1e-6",
        ),
        Measure(
            name="sampled: share of statements that hold, at the kind where it is least",
            value=min(rates),
            unit="",
            peer="95% is what is said; 400 trials scatter by 1.1%",
        ),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
