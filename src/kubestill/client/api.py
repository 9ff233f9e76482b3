"""Requests to Kubeflow's REST API (v2beta1), and what its refusals mean for a person.

Plain JSON, not the generated client: that one cannot leave a version id empty, which is how "always
the latest version" is said, and it writes headers, secrets included, into its debug log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from kubestill.client.settings import Connection
from kubestill.errors import ClusterError

_ROOT = "/apis/v2beta1/"
PAUSE_S = 1.0
"""Seconds from which pauses between tries grow: none, then twice this, then four times."""
_LONGEST_PAUSE_S = 30.0
"""Most seconds to wait, whatever a server asks for."""
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


class _Patience(urllib3.Retry):
    """How often a request is repeated: only one that reads, or that never reached the server.

    A repeated POST would create two things.
    """

    def parse_retry_after(self, retry_after: str) -> float:
        """Read how long the server asks us to wait: within reason, and if it can be read."""
        try:
            return min(super().parse_retry_after(retry_after), _LONGEST_PAUSE_S)
        except urllib3.exceptions.InvalidHeader:
            return 0.0


class Api:
    """One Kubeflow installation."""

    def __init__(self, connection: Connection, pause_s: float | None = None):
        """Remember where it is; nothing is sent yet.

        Args:
            connection: Where and as whom.
            pause_s: What pauses between tries grow from; default: `PAUSE_S`.
        """
        self.connection = connection
        self._session = requests.Session()
        retries = _Patience(
            total=3,
            other=0,
            redirect=False,
            allowed_methods={"GET"},
            status_forcelist={429, 502, 503, 504},
            backoff_factor=PAUSE_S if pause_s is None else pause_s,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retries))
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
        """Send; once more with credentials read anew, where they have expired."""
        response = self._try(method, path, query, **content)
        page = bool(content.get("stream"))
        if _expired(response, page=page) and (renewed := self.connection.renewed()):
            response.close()
            self.connection = renewed
            # Nothing was done with the request that was not let in.
            response = self._try(method, path, query, **content)
        return response

    def _try(
        self, method: str, path: str, query: dict[str, Any], **content: Any
    ) -> requests.Response:
        try:
            return self._session.request(
                method,
                self.connection.host + path,
                params={name: value for name, value in query.items() if value not in ("", None)},
                headers=self.connection.headers(),
                timeout=(10, 60),
                # A way in that has expired sends one to a login page, which gets no credentials.
                allow_redirects=False,
                **content,
            )
        except requests.RequestException as error:
            raise self._unreachable(error) from error

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
        # Behind the last try stands what ended it.
        behind = getattr(error.args[0], "reason", error) if error.args else error
        reason = "connection refused, or no such host"
        if isinstance(error, requests.ConnectTimeout):
            reason = "no answer within 10 s"
        elif isinstance(behind, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
            reason = "no answer within 60 s"
        return ClusterError(
            f"cannot reach {host} ({reason}): check the address, the VPN, and that `kubectl "
            "port-forward -n kubeflow svc/ml-pipeline-ui 8080:80` still runs if you use one"
        )


def _expired(response: requests.Response, *, page: bool) -> bool:
    """Return whether the answer asks to sign in: 401, or a login page in place of the answer."""
    status = response.status_code
    is_page = "html" in response.headers.get("Content-Type", "")
    return status == 401 or 300 <= status < 400 or (status == 200 and is_page and not page)
