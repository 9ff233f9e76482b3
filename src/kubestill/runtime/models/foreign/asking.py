"""Ask a server over HTTP: at a bounded rate, with bounded retries and bounded answers."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Problem
from kubestill.runtime.base.redaction import redact
from kubestill.runtime.base.values import JsonObject, parse_json

TOKEN = "KUBESTILL_TOKEN"
"""Environment variable with the bearer token. A model may name another, which begins like it: no
file that somebody wrote can have any other secret sent away."""
_LARGEST = 16 << 20
"""Bytes of an answer."""
_LONGEST_WAIT = 30.0
"""Seconds between two tries, whatever a server asks for."""
_PIECE = 1 << 16
_PASSING = frozenset((408, 425, 429, *range(500, 600))) - {501, 505}
"""Statuses of an answer that may be another one a little later."""
_UNPAID = (425, 429, 500, 503)
"""Those by which a server says that it has done no work; a gateway cannot know (408, 502, 504)."""
_SHORT = 8
"""Characters below which a token may stand in an answer by chance."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    content: bytes
    wait: float | None
    """Seconds that the server asks for before the next try; None where it does not."""


class Client:
    """One server, asked by several threads."""

    def __init__(
        self,
        *,
        parallel: int,
        timeout: float,
        retries: int,
        per_second: float,
        token: str,
    ):
        """Prepare.

        Args:
            parallel: Requests at a time.
            timeout: Seconds for one try, from the first byte sent to the last one received.
            retries: Further tries, where the server is slow, away, or asks to wait.
            per_second: Tries begun in a second; 0 for any number.
            token: Environment variable that holds the bearer token, where there is one.
        """
        self._tries, self._timeout = retries + 1, timeout
        # No redirect is followed: a token goes to no other place.
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=parallel,
            block=True,
            timeout=urllib3.Timeout(total=timeout),
            retries=False,
        )
        self._pause = 1 / per_second if per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()
        self._token = token

    def ask(
        self, url: str, body: bytes | None = None, charge: Callable[[int], None] = lambda _: None
    ) -> JsonObject:
        """POST a body of JSON, or GET where there is none, and return the JSON of the answer.

        Args:
            url: Of the server.
            body: What it is asked.
            charge: Called with 1 before a further try where the last may be charged although no
                answer came of it, and with -1 where the last came to nothing that is.

        Raises:
            InvalidInput: The server refuses the request or the token.
            KubestillError: It did not answer, or not in JSON, however often it was asked; or
                whatever `charge` raises.
        """
        try:
            token = self._read_token()
        except InvalidInput:
            charge(-1)
            raise
        said, wait, paid = "", 0.0, False
        for number in range(self._tries):
            if number:
                charge(int(paid))
                wait = 0.125 * 2**number * random.uniform(0.5, 1.5) if wait is None else wait
                time.sleep(min(wait, _LONGEST_WAIT))
            self._keep_pace()
            try:
                answer = self._try(url, body, token)
            except HTTPError as error:
                said, wait, paid = str(error), None, not isinstance(error, _UNSENT)
            else:
                if answer.status < 300:
                    return self._read(url, answer, token)
                if answer.status not in _PASSING:
                    charge(-1)
                    raise InvalidInput([self._refused(url, answer, token)])
                said = f"{answer.status}: {_said(answer, token)}"
                wait, paid = answer.wait, answer.status not in _UNPAID
        charge(int(paid) - 1)
        raise KubestillError(
            f"{url} did not answer, tried {self._tries} times; the last time: {said}"
        )

    def _try(self, url: str, body: bytes | None, token: str) -> _Answer:
        """Ask once.

        Raises:
            HTTPError: No whole answer came in time.
        """
        until = time.monotonic() + self._timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        response = self._pool.request(
            "GET" if body is None else "POST",
            url,
            body=body,
            headers=headers | ({"Authorization": f"Bearer {token}"} if token else {}),
            redirect=False,
            preload_content=False,
        )
        content = bytearray()
        try:
            # What has arrived, not as much as was asked for: a server may send a byte a second.
            while len(content) <= _LARGEST and (piece := response.read1(_PIECE)):
                content += piece
                if time.monotonic() > until:
                    raise HTTPError(f"the answer took longer than {self._timeout:g} s")
        finally:
            if len(content) > _LARGEST or time.monotonic() > until:
                response.close()  # the rest is of no use, and in the way of the next answer
            response.release_conn()
        wait = _parse_wait(response.headers.get("Retry-After"))
        return _Answer(status=response.status, content=bytes(content), wait=wait)

    def _read(self, url: str, answer: _Answer, token: str) -> JsonObject:
        """Return the JSON of an answer.

        Raises:
            KubestillError: It is no JSON object, or too large.
        """
        content = answer.content
        if len(content) > _LARGEST:
            raise KubestillError(
                f"the answer of {url} is larger than {_LARGEST >> 20} MiB; ask for fewer rows at "
                "a time (endpoint.rows_per_request)"
            )
        if len(token) >= _SHORT:  # which a server may repeat
            content = content.replace(token.encode(), b"***").replace(_escaped(token), b"***")
        try:
            return parse_json(content, source=url, what="JSON answer")
        except CorruptData as error:
            raise KubestillError(f"{error}; it begins with {_said(answer, token)!r:.80}") from error

    def _keep_pace(self) -> None:
        """Begin no more tries in a second than there may be."""
        if not self._pause:
            return
        with self._lock:  # whoever waits next sees when this one began, however late that was
            time.sleep(max(self._next - time.monotonic(), 0.0))
            self._next = time.monotonic() + self._pause

    def _read_token(self) -> str:
        token = os.environ.get(self._token, "").strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            remedy = (
                "this variable holds blanks, line ends or other characters that no header takes; "
                "set it to the token alone"
            )
            raise InvalidInput([Problem("endpoint.token", self._token, remedy)])
        return token

    def _refused(self, url: str, answer: _Answer, token: str) -> Problem:
        said = f"the server answers {answer.status}: {_said(answer, token)}"
        if answer.status in (401, 403):
            given = "holds what it refuses" if token else "is not set"
            return Problem("endpoint.token", self._token, f"this variable {given}; {said}")
        if answer.status < 400:
            said += "; redirects are not followed; give the address that it leads to"
        return Problem("endpoint", url, said)


_UNSENT = (NewConnectionError, ConnectTimeoutError)


def _said(answer: _Answer, token: str) -> str:
    """Return the beginning of an answer for people, without the token that a server may repeat."""
    content = answer.content[:4096]
    if token:
        content = content.replace(token.encode(), b"***").replace(_escaped(token), b"***")
    return redact(content.decode(errors="replace").strip())[:300]


def _escaped(token: str) -> bytes:
    """Return a token as some servers write it in JSON."""
    return token.replace("/", "\\/").encode()


def _parse_wait(asked: str | None) -> float | None:
    """Return the seconds of a Retry-After, which are a number or a date; None of anything else."""
    try:
        seconds = float(asked or "")
        return None if math.isnan(seconds) else max(seconds, 0.0)
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(asked or "")
    except (TypeError, ValueError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(when.timestamp() - time.time(), 0.0)
