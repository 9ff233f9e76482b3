"""Webhooks about the ends of runs, received on loopback by receivers of every temper."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from scene import Scene  # pyright: ignore[reportMissingImports]

from kubestill.runtime.base.artifacts import LocalArtifact
from kubestill.runtime.base.patience import Patience
from kubestill.runtime.retraining import notices
from kubestill.runtime.retraining.history import Judgement, RunOutcome
from kubestill.runtime.retraining.notices import notify
from kubestill.runtime.steps.record_outcome import record_outcome

QUICK = Patience(attempts=3, pause_seconds=0.01, answer_seconds=0.2, all_seconds=1.0)


@dataclass
class Receiver:
    """What a webhook's receiver got, and how it answers."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    """Of the next answers; the last one stays."""
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Generator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((dict(self.headers), body))
            if made.answer is not None:
                made.answer(self)
                return
            status = made.statuses.pop(0) if len(made.statuses) > 1 else made.statuses[0]
            self.send_response(status)
            self.send_header("Location", made.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/services/T0/secret"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "PATIENCE", QUICK)
    monkeypatch.delenv(notices.URL, raising=False)
    monkeypatch.delenv(notices.SECRET, raising=False)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def tell(scene: Scene, url: str, outcome: str = "rejected") -> str:
    done = RunOutcome(run_id="r-1", outcome=outcome, reason="a < b & c", at="2026-01-01T00:00:00Z")
    return notify(scene.registry, "r-1", done, url)


def test_a_receiver_gets_a_cloud_event_that_slack_compatible_ones_show(
    scene: Scene, receiver: Receiver
) -> None:
    told = tell(scene, receiver.url)
    assert told == f"notify: rejected was sent to {receiver.url.partition('/services')[0]}"
    ((headers, body),) = receiver.got
    assert headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    event = json.loads(body)
    uri = scene.registry.uri
    assert event == {
        "specversion": "1.0",
        "id": "r-1/rejected",
        "source": uri,
        "type": "kubestill.retraining.rejected",
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "text": f"*rejected* {uri} (run r-1): a &lt; b &amp; c",
        "data": {
            "outcome": "rejected",
            "reason": "a < b & c",
            "run_id": "r-1",
            "registry": uri,
            "champion": None,
            "champion_degraded": False,
        },
    }
    assert "webhook-signature" not in headers


@pytest.mark.parametrize(
    ("outcome", "sent"),
    [(name, True) for name in ("promoted", "rejected", "stuck", "unfit", "failed")]
    + [(name, False) for name in ("healthy", "inconclusive", "waiting", "busy", "abandoned")],
)
def test_what_needs_nobody_is_not_sent(
    scene: Scene, receiver: Receiver, outcome: str, sent: bool
) -> None:
    assert bool(tell(scene, receiver.url, outcome)) == sent
    assert len(receiver.got) == sent


@pytest.mark.parametrize(
    ("step", "decision", "outcome", "event"),
    [
        ("judge", "degraded", "inconclusive", "degraded"),
        ("judge", "degraded", "failed", "failed"),
        ("judge", "degraded", "promoted", "promoted"),
        ("judge", "healthy", "healthy", ""),
        # Labels are late, and `gate_expected` says that what is expected decides.
        ("expect", "degraded", "waiting", "degraded"),
        ("expect", "insufficient", "waiting", ""),
    ],
)
def test_a_champion_that_stays_degraded_is_an_event(
    scene: Scene, receiver: Receiver, step: str, decision: str, outcome: str, event: str
) -> None:
    scene.registry.append(Judgement(run_id="r-1", step=step, decision=decision, reason="x"))
    tell(scene, receiver.url, outcome)
    events = [json.loads(body) for _, body in receiver.got]
    assert [one["type"].rpartition(".")[2] for one in events] == [event] * bool(event)
    assert all(one["data"]["champion_degraded"] for one in events)


@pytest.mark.parametrize("key", ["a plain key", "whsec_" + base64.b64encode(b"\x00\xff").decode()])
def test_a_signature_covers_id_time_and_body(
    scene: Scene, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(notices.SECRET, key)
    tell(scene, receiver.url)
    ((headers, body),) = receiver.got
    # As standardwebhooks.com has it, by hand.
    secret = key.encode() if " " in key else b"\x00\xff"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == "r-1/rejected"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60


def test_a_key_that_cannot_be_read_is_said(
    scene: Scene, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notices.SECRET, "whsec_no base64")
    assert "KUBESTILL_NOTIFY_SECRET is no base64" in tell(scene, receiver.url)
    assert receiver.got == []


@pytest.mark.parametrize(
    ("statuses", "tries", "told"),
    [
        ([204], 1, "was sent to"),
        ([500, 429, 200], 3, "was sent to"),
        ([503], 3, "was refused (503) by"),
        ([400], 1, "was refused (400) by"),
        ([302], 1, "was refused (302) by"),
    ],
)
def test_a_refusal_is_retried_where_that_may_help(
    scene: Scene, receiver: Receiver, statuses: list[int], tries: int, told: str
) -> None:
    receiver.statuses = statuses
    assert f"rejected {told} http://127.0.0.1:" in tell(scene, receiver.url)
    assert len(receiver.got) == tries
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1


def hang(_: BaseHTTPRequestHandler) -> None:
    time.sleep(0.5)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 100:
        time.sleep(0.02)
        try:
            handler.wfile.write(bytes([letter]))
        except OSError:
            return


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (hang, "was not sent (ReadTimeout, 3 attempts) to"),
        (trickle, "was not sent in time to"),
        (hang_up, "was not sent (ConnectionError, 3 attempts) to"),
    ],
)
def test_a_receiver_that_never_answers_costs_a_bounded_time(
    scene: Scene, receiver: Receiver, answer: Callable[[BaseHTTPRequestHandler], None], told: str
) -> None:
    receiver.answer = answer
    begun = time.monotonic()
    said = tell(scene, receiver.url)
    assert told in said
    assert "secret" not in said, "the path of a webhook is often the credential"
    assert time.monotonic() - begun < QUICK.all_seconds + 0.5


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:9/x", "ConnectionError, 3 attempts"),
        ("http://no.such.host.invalid/", "was not sent"),
        ("ftp://somewhere/x", "must begin with http:// or https://"),
        ("hooks.example.com/x", "must begin with http"),
        ("http://[::1", "nothing was sent"),
        ("http://user:pass@127.0.0.1:9/", "to http://127.0.0.1:9"),
        ("https://127.0.0.1:9\r\nHost: x/", "was not sent"),
    ],
)
def test_an_address_that_leads_nowhere_is_said(scene: Scene, url: str, told: str) -> None:
    said = tell(scene, url)
    assert told in said
    assert "pass" not in said


@dataclass
class Status:
    state: str = "FAILED"
    error_message: str | None = None


@pytest.mark.parametrize("absent", [False, True])
def test_the_last_step_tells_and_ends_well_whatever_comes_of_it(
    scene: Scene,
    receiver: Receiver,
    absent: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(notices.URL, "http://127.0.0.1:9/" if absent else receiver.url)
    summary = LocalArtifact(str(tmp_path / "summary"))
    given = {"registry": scene.registry.uri, "run_id": "r-9", "final_status": Status()}
    for address in ("", receiver.url):
        assert record_outcome(summary=summary, notify=address, **given) == ("failed",)
    told = [line for line in capsys.readouterr().out.splitlines() if "notify" in line]
    assert ("was not sent" in told[0]) == absent
    assert "was sent" in told[1]
    assert json.loads(receiver.got[-1][1])["data"]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("host", "slack"), [("hooks.slack.com", True), ("slack.com", True), ("notslack.com", False)]
)
def test_slack_gets_its_text_alone(
    scene: Scene, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, host: str, slack: bool
) -> None:
    # Its name stands for the loopback receiver: nothing leaves this machine.
    monkeypatch.setenv("http_proxy", receiver.url.partition("/services")[0])
    monkeypatch.setenv("no_proxy", "")
    assert f"was sent to http://{host}" in tell(scene, f"http://{host}/services/x")
    ((headers, body),) = receiver.got
    assert (headers["Content-Type"] == "application/json") is slack
    assert (list(json.loads(body)) == ["text"]) is slack
