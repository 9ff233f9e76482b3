"""What Cloud Storage's client raises, sorted: passing, or one of ours."""

# The client library is not typed.
# pyright: basic

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import google.auth.exceptions
import requests
import urllib3
from google.api_core.exceptions import GoogleAPICallError, from_http_response
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from kubestill.errors import Conflict, NoSuchBucket, NotFound, PermissionDenied, StoreError
from kubestill.runtime.stores.transfer import PASSING, Garbled

T = TypeVar("T")


def checked(response: requests.Response) -> requests.Response:
    """Return the response, or raise what its status means the way the client library does."""
    if not 200 <= response.status_code < 300:
        raise from_http_response(response)
    return response


def understood(call: Callable[[], T]) -> T:
    """Return what a call of the client library returns, which takes any 2xx for the right answer.

    Raises:
        Garbled: The answer was no JSON object.
    """
    try:
        return call()
    except AttributeError as error:
        raise Garbled(f"the answer is no JSON object: {error}") from error


def is_transient(error: Exception) -> bool:
    """Return whether the same request may well succeed a little later."""
    code = _status(error)
    if code is not None:
        return code in PASSING
    return isinstance(
        error,
        requests.ConnectionError
        | requests.Timeout
        | requests.exceptions.ChunkedEncodingError
        | requests.exceptions.JSONDecodeError
        | urllib3.exceptions.HTTPError
        | google.auth.exceptions.TransportError
        | ConnectionError
        | DataCorruption
        | Garbled,
    )


def is_refusal(error: Exception) -> bool:
    """Return whether it says that a condition of the request does not hold."""
    return _status(error) == 412


def translate(error: Exception, bucket: str, what: str, action: str) -> StoreError | None:
    """Return the error of ours that an answer of the service means; None for any other error."""
    code = _status(error)
    if code == 412:
        return Conflict(f"{what} is not at the expected generation")
    if code == 404 and action in ("get", "delete"):
        return NotFound(f"{what} does not exist")
    needs = f"grant storage.objects.{action} on gs://{bucket}"
    if code in (401, 403, 404):
        reason = {
            401: "the credentials are missing or expired",
            403: "the credentials may not",
            404: f"the bucket {bucket!r} does not exist, or the credentials may not see it",
        }[code]
        kind = NoSuchBucket if code == 404 else PermissionDenied
        return kind(f"{action} {what}: {reason}: {needs} ({_message(error)})")
    if code is not None:
        return StoreError(f"{action} {what}: {code}: {_message(error)}")
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return PermissionDenied(f"{action} {what}: the credentials do not work: {needs} ({error})")
    if isinstance(error, requests.RequestException):
        return StoreError(f"{action} {what}: {error}")
    return None


def _status(error: Exception) -> int | None:
    if isinstance(error, GoogleAPICallError):
        return int(error.code) if error.code is not None else None
    if isinstance(error, InvalidResponse):
        return error.response.status_code
    return None


def _message(error: Exception) -> str:
    return str(getattr(error, "message", error))[:300]
