"""Ask a server over HTTP: at a bounded rate, with bounded retries and bounded answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

import urllib3
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.response import BaseHTTPResponse

from kubestill.errors import CorruptData, InvalidInput, KubestillError, Problem
from kubestill.runtime.base.values import JsonObject, parse_json

TOKEN = "KUBESTILL_TOKEN"
"""Environment variable with the bearer token. A model may name another, which begins like it: no
file that somebody wrote can have any other secret sent away."""
_LARGEST = 16 << 20
"""Bytes of an answer."""
_LONGEST_WAIT = 30.0
"""Seconds between two tries, whatever a server asks for."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of an answer that may be another one a little later."""


class _Retry(Retry):
    """Waits as long as the server asks, within reason."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, _LONGEST_WAIT)


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
            timeout: Seconds for one try.
            retries: Further tries, where the server is slow, away, or asks to wait.
            per_second: Requests begun in a second; 0 for any number.
            token: Environment variable that holds the bearer token, where there is one.
        """
        self._retries = _Retry(
            total=retries,
            redirect=0,  # a token goes to no other place
            status_forcelist=_PASSING,
            allowed_methods=None,
            backoff_factor=0.25,
            backoff_max=_LONGEST_WAIT,
            backoff_jitter=0.25,
            raise_on_status=False,
            raise_on_redirect=False,
        )
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=parallel, block=True, timeout=urllib3.Timeout(total=timeout)
        )
        self._pause = 1 / per_second if per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()
        self._token = token

    def ask(self, url: str, body: bytes | None = None) -> JsonObject:
        """POST a body of JSON, or GET where there is none, and return the JSON of the answer.

        Raises:
            InvalidInput: The server refuses the request or the token.
            KubestillError: It did not answer, or not in JSON, however often it was asked.
        """
        self._wait()
        retries: Retry = self._retries
        while True:
            try:
                response = self._pool.request(
                    "GET" if body is None else "POST",
                    url,
                    body=body,
                    headers=self._headers(),
                    retries=retries,
                    redirect=False,
                    preload_content=False,
                )
                content = response.read(_LARGEST + 1)
                response.release_conn()
                break
            except MaxRetryError as error:
                raise self._away(url, str(error.reason)) from error
            except HTTPError as error:
                # While the answer was read, which urllib3 leaves to its caller.
                try:
                    retries = retries.increment("POST", url, error=error)
                except (MaxRetryError, HTTPError) as last:
                    raise self._away(url, str(error)) from last
                retries.sleep()
        if response.status in _PASSING:
            raise self._away(url, f"{response.status}: {content[:300].decode(errors='replace')}")
        if response.status >= 300:
            raise InvalidInput([self._refused(url, response.status, content)])
        try:
            return parse_json(content, source=url, what="answer")
        except CorruptData as error:
            raise KubestillError(str(error)) from error

    def _wait(self) -> None:
        """Begin no more requests in a second than there may be."""
        if not self._pause:
            return
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._pause
        time.sleep(mine - now)

    def _headers(self) -> Mapping[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        token = os.environ.get(self._token, "").strip()
        return headers | ({"Authorization": f"Bearer {token}"} if token else {})

    def _away(self, url: str, said: str) -> KubestillError:
        tries = (self._retries.total or 0) + 1
        return KubestillError(f"{url} did not answer, tried {tries} times; the last time: {said}")

    def _refused(self, url: str, status: int, content: bytes) -> Problem:
        said = f"the server answers {status}: {content[:300].decode(errors='replace').strip()}"
        if status in (401, 403):
            given = "holds what it refuses" if os.environ.get(self._token) else "is not set"
            return Problem("endpoint.token", self._token, f"this variable {given}; {said}")
        if status < 400:
            said += "; redirects are not followed; give the address that it leads to"
        return Problem("endpoint", url, said)
