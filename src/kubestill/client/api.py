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

    def open(self, path: str, **query: Any) -> requests.Response:
        """Ask for something beside the API, such as a log, as a stream; the caller closes it.

        Args:
            path: From the host on, such as `/artifacts/get`.
            query: Empty ones stay out.

        Raises:
            ClusterError: It is not there, or the server refused, failed or was away.
        """
        response = self._request("GET", path, query, stream=True)
        try:
            # A page may be what was asked for: a report is one.
            self._check("GET", path, response, page=True)
        except ClusterError:
            response.close()
            raise
        return response

    def _send(
        self, method: str, path: str, query: dict[str, Any], **content: Any
    ) -> dict[str, Any]:
        response = self._request(method, _ROOT + path, query, **content)
        self._check(method, path, response)
        try:
            answer = response.json()
        except requests.JSONDecodeError as error:
            raise self._no_kubeflow(method, path, response.status_code) from error
        if not isinstance(answer, dict):
            raise self._no_kubeflow(method, path, response.status_code)
        return answer

    def _request(
        self, method: str, path: str, query: dict[str, Any], **content: Any
    ) -> requests.Response:
        """Send, again where that may help; with credentials read anew where they have expired."""
        response = self._repeat(method, path, query, **content)
        page = bool(content.get("stream"))
        if _expired(response, page=page) and (renewed := self.connection.renewed()):
            response.close()
            self.connection = renewed
            # Nothing was done with the request that was not let in.
            response = self._repeat(method, path, query, **content)
        return response

    def _repeat(
        self, method: str, path: str, query: dict[str, Any], **content: Any
    ) -> requests.Response:
        parameters = {name: value for name, value in query.items() if value not in ("", None)}
        # Only a question may be asked twice: a repeated POST would create two things.
        pauses = self._pauses if method == "GET" else ()
        for pause in (*pauses, None):
            try:
                response = self._session.request(
                    method,
                    self.connection.host + path,
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
                    return response
                response.close()
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _check(
        self, method: str, path: str, response: requests.Response, *, page: bool = False
    ) -> None:
        status = response.status_code
        if _expired(response, page=page) and status != 401:
            raise ClusterError(
                f"{self.connection.host} answered with a login page (signed in with "
                f"{self.connection.way_in}), or is no Kubeflow: {_REMEDIES[401]}",
                401,
            )
        if status >= 400:
            raise self._refused(method, path, response)

    def _no_kubeflow(self, method: str, path: str, status: int) -> ClusterError:
        return ClusterError(
            f"{self.connection.host} does not answer as Kubeflow does ({method} {path}); "
            "is it the address of its API, such as https://.../pipeline?",
            status,
        )

    def _refused(self, method: str, path: str, response: requests.Response) -> ClusterError:
        status = response.status_code
        try:
            answer = response.json()
            said = answer.get("error") or answer.get("message") or answer.get("error_message")
        except (requests.RequestException, AttributeError):
            # Not by its type: the UI's server calls its plain sentences HTML.
            said = "" if response.text.lstrip().startswith("<") else response.text
        said = " ".join(str(said or response.reason).split())[:500]
        remedy = _FAILED if status >= 500 else _REMEDIES.get(status, _REMEDIES[400])
        where = f"{method} {path} at {self.connection.host}"
        if self.connection.namespace:
            where += f", namespace {self.connection.namespace}"
        if status == 401:
            where += f", signed in with {self.connection.way_in}"
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


def _is_page(response: requests.Response) -> bool:
    return "html" in response.headers.get("Content-Type", "")


def _expired(response: requests.Response, *, page: bool) -> bool:
    """Whether the answer is that of a way in: 401, or a login page where none was asked for."""
    status = response.status_code
    return (
        status == 401 or 300 <= status < 400 or (status == 200 and _is_page(response) and not page)
    )
