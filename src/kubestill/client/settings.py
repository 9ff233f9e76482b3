"""Where Kubeflow is and how to sign in: from flags, the environment, a small file, or the pod."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from urllib.parse import urlsplit

import yaml

from kubestill.assets.reading import read_yaml
from kubestill.errors import Problems, nearest

CONFIG = "~/.config/kubestill/config.yaml"
IN_CLUSTER_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
"""Where Kubeflow's manifests mount a token for its own API; the kubelet renews it."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach Kubeflow. Its secrets never show: not in a repr, an error or a log."""

    host: str
    """URL of the API, without `/apis/...`."""
    namespace: str = ""
    """Kubeflow's user namespace; empty on a single-user installation."""
    token: str = field(default="", repr=False)
    """Bearer token."""
    cookie: str = field(default="", repr=False)
    """Session cookie, as `name=value`: what Dex gives a browser."""
    header: str = field(default="", repr=False)
    """One header as `Name: value`: what an identity-aware proxy asks for."""
    token_file: str = ""
    """File that holds the bearer token, read for every request because it may be renewed."""
    ca_file: str = ""
    """Certificates to trust instead of the system's."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Files that the token, the cookie or the header were read from, by the setting's name."""

    def renewed(self) -> Connection | None:
        """Read the files of credentials again; None where none says anything new.

        A pipe gives its content once, so only ordinary files count.
        """
        changed: dict[str, str] = {}
        for name, path in self.sources.items():
            try:
                content = _read(path) if os.path.isfile(path) else ""
            except (OSError, UnicodeDecodeError):
                continue  # it is being replaced, or gone: what we have stays
            if content and content != getattr(self, name) and _usable(name, content):
                changed[name] = content
        return replace(self, **changed) if changed else None

    def headers(self) -> dict[str, str]:
        """Build the headers that sign a request in."""
        headers: dict[str, str] = {}
        token = self.token or (_read(self.token_file) if self.token_file else "")
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self.cookie:
            headers["Cookie"] = self.cookie
        if self.header:
            name, _, value = self.header.partition(":")
            headers[name.strip()] = value.strip()
        return headers

    @property
    def exposure(self) -> str:
        """Return a warning where others on the way can read the credentials; else nothing."""
        parts = urlsplit(self.host)
        host = parts.hostname or ""
        near = host == "localhost" or _is_loopback(host)
        signed = self.token or self.cookie or self.header or self.token_file
        if parts.scheme != "http" or near or _inside(host) or not signed:
            return ""
        return (
            f"{self.host} is plain http: anybody on the way there can read the {self.way_in} and "
            "act as you; use https://"
        )

    @property
    def way_in(self) -> str:
        """The way in which requests are authenticated, without the secret."""
        ways = {
            f"bearer token{self._origin('token')}": self.token,
            f"token of {self.token_file}": self.token_file and not self.token,
            f"cookie{self._origin('cookie')}": self.cookie,
            f"header {self.header.partition(':')[0]}{self._origin('header')}": self.header,
        }
        return ", ".join(way for way, used in ways.items() if used) or "no credentials"

    def _origin(self, name: str) -> str:
        return f" of {self.sources[name]}" if name in self.sources else ""


NAMES = tuple(part.name for part in fields(Connection) if part.name != "sources")
_SECRETS = ("token", "cookie", "header")


def read_connection(
    given: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> Connection:
    """Join flags, `KUBESTILL_*` variables, the configuration file and the pod, in this order.

    Args:
        given: Flags by name; empty ones count as absent. A value `@FILE` is read from that file, so
            that a secret need not stand on a command line.
        environment: The process's environment.

    Raises:
        InvalidInput: With everything that cannot work; never with a secret in it.
    """
    problems = Problems()
    values = _from_file(environment, problems)
    values |= {
        name: environment[f"KUBESTILL_{name.upper()}"]
        for name in NAMES
        if environment.get(f"KUBESTILL_{name.upper()}")
    }
    values |= {name: value for name, value in given.items() if value}
    sources = {
        name: os.path.expanduser(values[name][1:])
        for name in _SECRETS
        if values.get(name, "").startswith("@")
    }
    values = {name: _resolve(name, value, problems) for name, value in values.items()}
    host = values.get("host", "").rstrip("/").removesuffix("/#").rstrip("/")
    if not host and "KUBERNETES_SERVICE_HOST" in environment:
        host = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    values["host"] = _check_host(host, problems)
    for name in _SECRETS:
        if values.get(name) and not _usable(name, values[name]):
            problems.add(name, "***", _FORMS[name])
    if path := values.get("ca_file", ""):
        values["ca_file"] = os.path.expanduser(path)
        if not os.path.exists(values["ca_file"]):
            remedy = "there is no such file; give a file, or a folder, of certificates in PEM form"
            problems.add("ca_file", path, remedy)
    problems.raise_if_any()
    # An explicit host inside the cluster wants the pod's token as much as the default one; a host
    # outside of it must not see that token.
    inside = urlsplit(values["host"]).hostname or ""
    signed = any(values.get(name) for name in ("token", "cookie", "header", "token_file"))
    if not signed and _inside(inside):
        path = environment.get("KF_PIPELINES_SA_TOKEN_PATH", IN_CLUSTER_TOKEN)
        if os.path.exists(path):
            values["token_file"] = path
    return Connection(**values, sources=sources)


_FORMS = {
    "token": "holds a line end or a sign that no header can hold; give the bare token",
    "cookie": "holds a line end or a sign that no header can hold; write it as name=value",
    "header": "write it as 'Name: value', on one line",
}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _inside(host: str) -> bool:
    """Return whether only a cluster can resolve a host name."""
    return host.endswith((".svc", ".svc.cluster.local"))


def _usable(name: str, secret: str) -> bool:
    """Return whether a secret fits into a header; the library's own error would quote it."""
    if not secret.isprintable() or not secret.isascii():
        return False
    return name != "header" or bool(secret.partition(":")[0].strip()) and ":" in secret


def _from_file(environment: Mapping[str, str], problems: Problems) -> dict[str, str]:
    named = environment.get("KUBESTILL_CONFIG", "")
    path = os.path.expanduser(named or CONFIG)
    if not named and not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = read_yaml(file) or {}
    except (OSError, UnicodeDecodeError):
        problems.add("KUBESTILL_CONFIG", path, "cannot be read")
        return {}
    except yaml.YAMLError:  # its message quotes the line, which may hold a secret
        problems.add("configuration", path, "is no YAML; write lines such as `host: https://...`")
        return {}
    if not isinstance(content, dict):
        problems.add("configuration", path, "write lines such as `host: https://...`")
        return {}
    for name in [name for name in content if name not in NAMES]:
        problems.add(f"{name} in {path}", "***", f"no such setting; {nearest(str(name), NAMES)}")
        content.pop(name)
    return {name: str(value) for name, value in content.items() if value}


def _resolve(name: str, value: str, problems: Problems) -> str:
    if not value.startswith("@"):
        return value.strip()
    try:
        return _read(os.path.expanduser(value[1:]))
    except (OSError, UnicodeDecodeError):
        problems.add(name, value, "that file cannot be read")
        return ""


def _check_host(host: str, problems: Problems) -> str:
    if not host:
        remedy = "give --host, KUBESTILL_HOST or `host:` in " + CONFIG
        problems.add("host", "", f"where is Kubeflow? {remedy}, such as https://kubeflow.example")
        return host
    if "://" not in host:
        host = "https://" + host
    try:
        parts = urlsplit(host)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable, parts = False, None
    if not usable or parts is None:
        problems.add("host", host, "is no URL such as https://kubeflow.example/pipeline")
    elif "@" in parts.netloc:
        shown = f"{parts.scheme}://***@{parts.hostname}"
        problems.add("host", shown, "give credentials as --token, --cookie or --header instead")
    return host


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()
