"""What an S3 client raises, sorted: passing, or one of ours."""

# botocore is not typed.
# pyright: basic

from __future__ import annotations

import urllib3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as CannotConnect
from botocore.parsers import ResponseParserError

from kubestill.errors import Conflict, NoSuchBucket, NotFound, PermissionDenied, StoreError
from kubestill.runtime.stores.transfer import PASSING, Garbled

_PASSING_CODES = frozenset(
    {
        "RequestTimeout",  # 400: the body came too slowly
        "BadDigest",  # 400: it came garbled
        "ConditionalRequestConflict",  # 409: another conditional write is under way
        "OperationAborted",  # 409: the same in general
    }
)
_PERMISSIONS = {
    "get": "s3:GetObject",
    "create": "s3:PutObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
}
_REASONS = {
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the secret key is not the access key's",
    "ExpiredToken": "the credentials are expired",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the answer that an error is about; None where there was none."""
    if isinstance(error, ClientError):
        return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def code_of(error: Exception) -> str:
    """Return S3's own name of an error, such as NoSuchKey; empty where it has none."""
    return error.response["Error"].get("Code", "") if isinstance(error, ClientError) else ""


def is_transient(error: Exception) -> bool:
    """Return whether the same request may well succeed a little later."""
    if isinstance(error, ClientError):
        return status_of(error) in PASSING or code_of(error) in _PASSING_CODES
    return isinstance(
        error,
        CannotConnect
        | HTTPClientError
        | IncompleteReadError
        | ResponseParserError
        | urllib3.exceptions.HTTPError
        | ConnectionError
        | Garbled,
    )


def is_refusal(error: Exception) -> bool:
    """Return whether it says that a condition of the request does not hold."""
    return status_of(error) == 412


def translate(error: Exception, bucket: str, what: str, action: str) -> StoreError | None:
    """Return the error of ours that an answer means; None for any other error.

    Args:
        error: What was raised.
        bucket: Its URI.
        what: The URI that was asked for.
        action: `get`, `create`, `list` or `delete`.
    """
    code, status = code_of(error), status_of(error)
    if status == 412:
        return Conflict(f"{what} is not at the expected version")
    if code == "NoSuchKey" and action == "create":
        return Conflict(f"{what} does not exist at all, let alone at the expected version")
    if status == 404 and code != "NoSuchBucket" and action in ("get", "delete"):
        return NotFound(f"{what} does not exist")
    needs = f"grant {_PERMISSIONS[action]} on {bucket}"
    if status in (401, 403, 404) or code in _REASONS:
        reason, kind = _REASONS.get(code, "the credentials may not"), PermissionDenied
        if status == 404:
            reason, kind = f"the bucket {bucket} does not exist", NoSuchBucket
        return kind(f"{action} {what}: {reason}: {needs} ({_message(error)})")
    if status is not None:
        return StoreError(f"{action} {what}: {status}: {_message(error)}")
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        remedy = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod's service account a "
            "role"
        )
        return PermissionDenied(f"{action} {what}: found no credentials: {remedy} ({error})")
    if isinstance(error, BotoCoreError):
        return StoreError(f"{action} {what}: {error}")
    return None


def _message(error: Exception) -> str:
    assert isinstance(error, ClientError)
    found = error.response["Error"]
    return f"{found.get('Code', '')}: {found.get('Message', '')}"[:300]
