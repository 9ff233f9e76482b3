"""Requests to Kubeflow's REST API (v2beta1), and what its refusals mean for a person.

Plain JSON, not the generated client: that one cannot leave a version id empty, which is how "always
the latest version" is said, and it writes headers, secrets included, into its debug log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import requests

from kubestill.client.settings import Connection
from kubestill.errors import ClusterError

_ROOT = "/apis/v2beta1/"
_PASSING = {429, 502, 503, 504}
_PAUSES = (0.5, 2.0, 5.0)
_REMEDIES = {
    400: "the server does not accept this request; `kubestill doctor` compares the versions",
    401: (
        "sign in: give --token, --cookie or --header, or renew the one you gave; "
        "`kubestill doctor` shows which is used"
    ),
    403: "ask for the role kubeflow-edit there, or name another --namespace",
    404: "check the name, the --namespace and that the host is Kubeflow's API",
    409: "something of that name exists already; choose another name or remove it",
    413: "the pipeline is too large for this server: 32 MB is Kubeflow's own limit",
    429: "the server is busy; try again later",
}
_FAILED = "the server failed; look at the logs of its deployment ml-pipeline, then try again"


class Api:
    """One Kubeflow installation."""

    def __init__(self, connection: Connection, pauses: tuple[float, ...] = _PAUSES):
        """Remember where it is; nothing is sent yet.

        Args:
            connection: Where and as whom.
            pauses: Seconds before each repetition of a request that only asks.
        """
        self.connection = connection
        self._pauses = pauses
        self._session = requests.Session()
        # Without this a .netrc would replace our credentials.
        self._session.trust_env = False
        self._session.proxies = requests.utils.get_environ_proxies(connection.host)
        self._session.verify = connection.ca_file or True

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Read one thing. `path` is relative to /apis/v2beta1/; queries that are empty stay out."""
        return self._send("GET", path, query)

    def post(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """Create something, or call an action such as `recurringruns/<id>:disable`."""
        return self._send("POST", path, query, json=body)

    def delete(self, path: str, **query: Any) -> None:
        """Delete one thing."""
        self._send("DELETE", path, query)

    def upload(self, path: str, content: bytes, **query: Any) -> dict[str, Any]:
        """Send a file as the form field `uploadfile`."""
        file = ("pipeline.yaml", content, "application/yaml")
        return self._send("POST", path, query, files={"uploadfile": file})

    def pages(self, path: str, field: str, **query: Any) -> Iterator[dict[str, Any]]:
        """List everything, page by page; `field` names the list in the answer."""
        token = ""
        while True:
            page = self.get(path, page_size=100, page_token=token, **query)
            yield from page.get(field) or []
            token = page.get("next_page_token", "")
            if not token:
                return

    def _send(
        self, method: str, path: str, query: dict[str, Any], **content: Any
    ) -> dict[str, Any]:
        parameters = {name: value for name, value in query.items() if value not in ("", None)}
        # Only a question may be asked twice: a repeated POST would create two things.
        pauses = self._pauses if method == "GET" else ()
        for pause in (*pauses, None):
            try:
                response = self._session.request(
                    method,
                    self.connection.host + _ROOT + path,
                    params=parameters,
                    headers=self.connection.headers(),
                    timeout=(10, 60),
                    # A way in that has expired sends one to a login page.
                    allow_redirects=False,
                    **content,
                )
            except requests.RequestException as error:
                if pause is None:
                    raise self._unreachable(error) from error
            else:
                if pause is None or response.status_code not in _PASSING:
                    return self._read(method, path, response)
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _read(self, method: str, path: str, response: requests.Response) -> dict[str, Any]:
        status = response.status_code
        html = "html" in response.headers.get("Content-Type", "")
        if 300 <= status < 400 or (status == 200 and html):
            raise ClusterError(
                f"{self.connection.host} answered with a login page "
                f"(signed in with {self.connection.way_in}): {_REMEDIES[401]}",
                401,
            )
        if status >= 400:
            raise self._refused(method, path, response, html)
        try:
            answer = response.json()
        except requests.JSONDecodeError as error:
            raise ClusterError(
                f"{self.connection.host} does not answer as Kubeflow does ({method} {path}); "
                "is it the address of its API, such as https://.../pipeline?",
                status,
            ) from error
        return answer

    def _refused(
        self, method: str, path: str, response: requests.Response, html: bool
    ) -> ClusterError:
        status = response.status_code
        try:
            answer = response.json()
            said = answer.get("error") or answer.get("message") or answer.get("error_message")
        except (requests.JSONDecodeError, AttributeError):
            said = "" if html else response.text
        said = " ".join(str(said or response.reason).split())[:500]
        remedy = _FAILED if status >= 500 else _REMEDIES.get(status, _REMEDIES[400])
        where = f"{method} {path} at {self.connection.host}"
        if self.connection.namespace:
            where += f", namespace {self.connection.namespace}"
        return ClusterError(f"{status} from {where}: {said}\n{remedy}", status)

    def _unreachable(self, error: requests.RequestException) -> ClusterError:
        host = self.connection.host
        if isinstance(error, requests.exceptions.SSLError):
            return ClusterError(
                f"{host}: its certificate is not trusted; give the right one as --ca-file"
            )
        reasons = {
            requests.exceptions.ConnectTimeout: "no answer within 10 s",
            requests.exceptions.ReadTimeout: "no answer within 60 s",
        }
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), "")
        return ClusterError(
            f"cannot reach {host} ({reason or 'connection refused, or no such host'}): check the "
            "address, the VPN, and that `kubectl port-forward -n kubeflow svc/ml-pipeline-ui "
            "8080:80` still runs if you use one"
        )
