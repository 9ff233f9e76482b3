"""Tell a receiver how a run ended, by an HTTP webhook that may fail without failing the run.

The body is a CloudEvent in JSON whose extension `text` is what Slack-compatible receivers show;
Slack itself gets nothing but that. Requests are signed as standardwebhooks.com describes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kubestill.errors import counted
from kubestill.runtime.base.patience import Patience, do_within
from kubestill.runtime.retraining.history import RunOutcome
from kubestill.runtime.retraining.registry import Registry

URL = "KUBESTILL_NOTIFY"
"""Environment variable with the receiver's address, where the address itself is a secret."""
SECRET = "KUBESTILL_NOTIFY_SECRET"
"""Environment variable with the key of signatures; with `whsec_` in front, in base64."""

_EVENTS = frozenset({"promoted", "rejected", "stuck", "unfit", "failed"})
_AGAIN = frozenset({408, 425, 429})
"""Refusals that another try may lift, beside those of 500 and more."""


PATIENCE = Patience()


def notify(registry: Registry, run_id: str, done: RunOutcome, url: str) -> str:
    """Send what there is to tell about the end of a run; nothing that goes wrong is raised.

    Args:
        registry: Where the run's history lies.
        run_id: Which run.
        done: How it ended.
        url: The receiver's address; empty takes that of the environment.

    Returns:
        What came of it, in a sentence without the address's path, which may be a secret; empty
        where nobody is notified.
    """
    url = url or os.environ.get(URL, "")
    if not url:
        return ""
    try:
        run = registry.run(run_id)
        judged = run.judged("judge") or run.judged("expect")
        degraded = judged is not None and judged.verdict == "degraded"
        event = done.outcome if done.outcome in _EVENTS else "degraded" if degraded else ""
        if not event:
            return ""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return f"notify: {event} was not sent: the address must begin with http:// or https://"
        champion = registry.read().champion
        data = {
            "outcome": done.outcome,
            "reason": done.reason,
            "run_id": run_id,
            "registry": registry.uri,
            "champion": champion.version if champion else None,
            "champion_degraded": degraded,
        }
        secret = os.environ.get(SECRET, "")
        try:
            key = _read_key(secret)
        except ValueError:
            return f"notify: {event} was not sent: what follows whsec_ in {SECRET} is no base64"
        told = _send(url, _event(event, data, done.at), key, PATIENCE)
        return f"notify: {event} {told} {parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except Exception as error:  # the run's outcome stands, whatever a receiver does
        return f"notify: nothing was sent: {type(error).__name__}"


def _read_key(secret: str) -> bytes:
    """Return the key of a secret.

    Raises:
        ValueError: It should be in base64, and is not.
    """
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    return secret.encode()


def _sign(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    """Return the header `webhook-signature` of a body; see standardwebhooks.com."""
    signed = b".".join([id.encode(), timestamp.encode(), body])
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _event(event: str, data: Mapping[str, Any], at: str) -> dict[str, Any]:
    text = f"*{event}* {data['registry']} (run {data['run_id']}): {data['reason']}"
    return {
        "specversion": "1.0",
        "id": f"{data['run_id']}/{event}",
        "source": data["registry"],
        "type": f"kubestill.retraining.{event}",
        "time": at,
        "datacontenttype": "application/json",
        "text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
        "data": dict(data),
    }


def _send(url: str, event: Mapping[str, Any], key: bytes, patience: Patience) -> str:
    """Post an event, signed where there is a key, and return what came of it."""
    # Half a second to import, for those who have a receiver.
    import requests

    slack = f".{urlsplit(url).hostname}".endswith(".slack.com")
    form = {"text": event["text"]} if slack else event
    body = json.dumps(form, ensure_ascii=False).encode()
    kind = "application/json" if slack else "application/cloudevents+json; charset=utf-8"
    headers = {"Content-Type": kind, "User-Agent": "kubestill", "webhook-id": event["id"]}
    told = ["was not sent in time to"]

    def deliver() -> None:
        for attempt in range(patience.attempts):
            if attempt:
                time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
            # Each attempt has its own time, which a receiver checks against replays.
            now = str(int(time.time()))
            signature: dict[str, str] = {"webhook-timestamp": now}
            if key:
                signature["webhook-signature"] = _sign(key, event["id"], now, body)
            try:
                answer = requests.post(
                    url,
                    data=body,
                    headers=headers | signature,
                    timeout=patience.answer_seconds,
                    allow_redirects=False,
                    stream=True,  # what it says does not matter, and may never end
                )
            except Exception as error:
                # The message would hold the whole address.
                tried = counted(attempt + 1, "attempt")
                told[0] = f"was not sent ({type(error).__name__}, {tried}) to"
                continue
            answer.close()
            if answer.ok and answer.status_code < 300:
                told[0] = "was sent to"
                return
            told[0] = f"was refused ({answer.status_code}) by"
            if answer.status_code < 500 and answer.status_code not in _AGAIN:
                return

    do_within(patience.all_seconds, deliver)
    return told[0]
