"""What does a row cost? `load_model` beside encoding by hand, `serve` beside a bare handler.

The hand-written encoding knows the columns by heart and ignores missing values; the bare handler
puts it behind the same server stack (Starlette, uvicorn, httptools, uvloop) and takes and gives the
same JSON. The network is the same object in all of them.

    python -m bench.bench_serving [--rounds 15]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.harness import Clocked, interval, take_turns
from bench.results import Measure, write
from kubestill.runtime.datasets.decode import RawLayout, decode_features
from kubestill.runtime.datasets.schema import Column, Schema
from kubestill.runtime.models.decoder import Decoder
from kubestill.runtime.models.encoder import Encoder
from kubestill.runtime.models.export import export_model, load_model
from kubestill.runtime.models.model import Model
from kubestill.runtime.models.predict import Predictor
from kubestill.runtime.models.signature import describe, sample_request

NUMBERS = tuple(f"n{place}" for place in range(8))
SMALL, LARGE = tuple("abcde"), tuple(f"l{place:02d}" for place in range(40))
CLASSES = ("no", "perhaps", "yes")
CLIENTS, REQUESTS, ROWS = 16, 1600, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bare", default="", help="serve the bare handler of this model")
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.bare:
        serve_bare(told.bare)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(folder)
        measures = [*latency(load_model(folder), told.rounds), *throughput(folder, told.rounds)]
    write("serving", measures)


def make(folder: str) -> None:
    """Export a model of 12 columns; untrained, for what it answers does not matter."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.normal(10, 3, 500) for name in NUMBERS})
    frame = frame.assign(
        flag=rng.random(500) < 0.5, small=rng.choice(SMALL, 500), large=rng.choice(LARGE, 500)
    )
    columns = (
        *(Column(name=name, kind="numeric") for name in NUMBERS),
        Column(name="flag", kind="boolean"),
        Column(name="small", kind="categorical", categories=SMALL),
        Column(name="large", kind="categorical", categories=LARGE),
        Column(name="y", kind="categorical", role="target", categories=CLASSES),
    )
    schema = Schema(columns=columns, task="multiclass")
    layout = RawLayout(schema)
    encoder = Encoder.fit([decode_features(frame, layout)], layout)
    arguments = {"hidden": [64, 64]}
    export_model(
        Model.create(schema, encoder=encoder, decoder=Decoder(), network_args=arguments), folder
    )


def by_hand(predictor: Predictor) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what somebody writes who wants one row answered, and knows the columns by heart."""
    network = predictor.model.network
    columns = {one.name: one for one in predictor.model.encoder.columns}
    scaled = [(n, columns[n].mean[0], 1 / columns[n].std[0]) for n in (*NUMBERS, "flag")]
    places = {label: float(place + 1) for place, label in enumerate(LARGE)}

    def answer(row: Mapping[str, Any]) -> dict[str, Any]:
        features = [(row[name] - mean) * scale for name, mean, scale in scaled]
        features += [1.0 if row["small"] == label else 0.0 for label in SMALL]
        features.append(places.get(row["large"], 0.0))
        with torch.inference_mode():
            chances = torch.softmax(network(torch.tensor([features])), 1)[0].tolist()
        named = {f"p_{name}": chance for name, chance in zip(CLASSES, chances, strict=True)}
        return {"prediction": CLASSES[chances.index(max(chances))], **named}

    return answer


def sample(predictor: Predictor) -> tuple[dict[str, Any], bytes]:
    """Return a row, and the body of a request for it."""
    spec = predictor.spec
    request = sample_request(describe(spec.schema, spec.outputs), dict.fromkeys(NUMBERS, 10.5))
    row = {one["name"]: one["data"][0] for one in request["inputs"]}
    return row, json.dumps(request).encode()


def latency(predictor: Predictor, rounds: int) -> list[Measure]:
    row, _ = sample(predictor)
    hand = by_hand(predictor)
    frame = pd.DataFrame([row])
    ours, theirs = predictor(row), hand(row)
    assert ours["prediction"] == theirs["prediction"]
    assert all(abs(ours[f"p_{name}"] - theirs[f"p_{name}"]) < 1e-6 for name in CLASSES)
    works: dict[str, Callable[[], object]] = {
        "dict": lambda: predictor(row),
        "dict by hand": lambda: hand(row),
        "frame": lambda: predictor(frame),
        "frame by hand": lambda: pd.DataFrame([hand(frame.to_dict("records")[0])]),
    }
    turns = take_turns({name: many(work) for name, work in works.items()}, rounds)
    measures: list[Measure] = []
    for form in ("dict", "frame"):
        peer = f"{form} by hand"
        low, high = interval(turns.ratios(form, peer))
        measures += [
            Measure(
                name=f"one row as a {form}: time over encoding by hand",
                value=turns.ratio(form, peer),
                unit="times",
                peer="hand-written encoding, the same network",
                bar=2.0,
                at_least=False,
            ),
            Measure(name=f"one row as a {form}: at most", value=high, unit="times", peer="95%"),
            Measure(
                name=f"one row as a {form}", value=1e6 * turns.median(form), unit="us", peer=""
            ),
            Measure(
                name=f"one row as a {form}, by hand",
                value=1e6 * turns.median(peer),
                unit="us",
                peer="",
            ),
        ]
    return measures


def many(work: Callable[[], object]) -> Clocked:
    """Return the seconds of one call, of many in a row."""

    def run() -> float:
        started = time.perf_counter()
        for _ in range(ROWS):
            work()
        return (time.perf_counter() - started) / ROWS

    return run


def throughput(folder: str, rounds: int) -> list[Measure]:
    _, body = sample(load_model(folder))
    python = [sys.executable, "-m"]
    commands = {
        "serve": [*python, "kubestill", "serve", folder, "--port", "0", "--poll", "0"],
        "bare": [*python, "bench.bench_serving", "--bare", folder],
    }
    processes = {
        name: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for name, command in commands.items()
    }
    try:
        ports = {name: _port(process) for name, process in processes.items()}
        rivals = {
            f"{name}, {clients}": load(port, body, clients)
            for name, port in ports.items()
            for clients in (1, CLIENTS)
        }
        turns = take_turns(rivals, rounds)
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()
    measures: list[Measure] = []
    for clients in (CLIENTS, 1):
        ours, peer = f"serve, {clients}", f"bare, {clients}"
        low, _ = interval(turns.ratios(peer, ours))
        label = f"{clients} clients" if clients > 1 else "1 client"
        measures += [
            Measure(
                name=f"{label}: requests over those of a bare handler",
                value=turns.ratio(peer, ours),
                unit="times",
                peer="a bare torch handler on the same server stack",
                bar=0.9 if clients > 1 else None,
            ),
            Measure(name=f"{label}: at least", value=low, unit="times", peer="95%"),
            Measure(name=f"{label}", value=1 / turns.median(ours), unit="requests/s", peer=""),
            Measure(
                name=f"{label}, bare handler",
                value=1 / turns.median(peer),
                unit="requests/s",
                peer="",
            ),
        ]
    return measures


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return int(line.split("http://")[1].split(":")[1].split("/")[0])
    raise RuntimeError("a server ended before it listened")


def load(port: int, body: bytes, clients: int) -> Clocked:
    """Return the seconds of one request, of many by clients that each wait for their answer."""
    head = (
        "POST /v2/models/model/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    each = REQUESTS // clients if clients > 1 else REQUESTS // 8

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(each):
            writer.write(request)
            headers = await reader.readuntil(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 200"), headers
            length = headers.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    async def all_of_them() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return (time.perf_counter() - started) / (each * clients)

    import uvloop

    return lambda: uvloop.run(all_of_them())


def serve_bare(folder: str) -> None:
    """Serve by hand: no checks, no metrics, no batches."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from kubestill.runtime.serving.server import claim_port

    hand = by_hand(load_model(folder))

    async def infer(request: Request) -> Response:
        form = json.loads(await request.body())
        answer = hand({one["name"]: one["data"][0] for one in form["inputs"]})
        chances = [answer[f"p_{name}"] for name in CLASSES]
        outputs = [
            {
                "name": "prediction",
                "datatype": "BYTES",
                "shape": [1],
                "data": [answer["prediction"]],
            },
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 3], "data": chances},
        ]
        content = json.dumps({"model_name": "model", "outputs": outputs}).encode()
        return Response(content, media_type="application/json")

    app = Starlette(routes=[Route("/v2/models/model/infer", infer, methods=["POST"])])
    taken = claim_port("127.0.0.1", 0)
    taken.listen(2048)
    print(f"http://127.0.0.1:{taken.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[taken])


if __name__ == "__main__":
    main()
