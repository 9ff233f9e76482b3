"""Hosts on one switch, as Linux namespaces: each with its own network, name and disk.

A host can be cut off. What it sends and what is sent to it is lost then, without a word to either
side, as behind a switch that has failed; its processes go on.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

BEHIND = "10.77.0.254"
"""What is behind the switch, for all hosts."""
_NAMESPACES = ("--net", "--mount", "--uts")
_STARTED = "started"


@cache
def why_no_hosts() -> str:
    """Return why this machine has no such hosts; empty where it has."""
    tried = ["unshare", *_NAMESPACES, "ip", "link", "add", "tried", "type", "bridge"]
    try:
        done = subprocess.run(tried, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


class Host:
    """One host; `enter` is what a command on it begins with."""

    def __init__(self, name: str, disk: Path, process: int, switch: int, port: str):
        self.name = name
        self._disk = disk
        self.enter = ["nsenter", "--target", str(process), *_NAMESPACES]
        self._port = ["nsenter", "--target", str(switch), "--net", "ip", "link", "set", port]

    def has(self, name: str) -> bool:
        """Whether a file of this name is anywhere on its disk, where files come and go."""
        return any(name in files for *_, files in os.walk(self._disk))

    def cut_off(self) -> None:
        """Lose what this host sends, and what is sent to it."""
        subprocess.run([*self._port, "down"], check=True)

    def reconnect(self) -> None:
        """Let it reach the others again."""
        subprocess.run([*self._port, "up"], check=True)


class Switch:
    """What hosts are on."""

    def __init__(self, names: Mapping[str, str], mount: Path, folder: Path, stack: ExitStack):
        self._mount, self._folder, self._stack = mount, folder, stack
        self._count = 0
        lines = ["127.0.0.1 localhost", *(f"{at} {name}" for name, at in names.items())]
        self._names = names
        (folder / "names").write_text("\n".join(lines))
        self._process = self._hold(
            f"ip link add switch type bridge && ip address add {BEHIND}/24 dev switch && "
            "ip link set switch up"
        )

    def add(self, name: str) -> Host:
        """Start a host, with an empty disk."""
        self._count += 1
        disk, port = self._folder / f"disk-{self._count}", f"port{self._count}"
        disk.mkdir()
        process = self._hold(
            f"hostname {name} && mount --bind {self._folder}/names /etc/hosts && "
            f"mount --bind {disk} {self._mount} && ip link set lo up"
        )
        within = ["nsenter", "--target", str(self._process), "--net", "sh", "-ec"]
        network = ["nsenter", "--target", str(process), "--net", "sh", "-ec"]
        # One that replaces another is found at once by who still knows the other's card.
        card = f"02:00:00:00:00:{list(self._names).index(name):02x}"
        wired = f"ip link add {port} type veth peer name eth0 address {card} netns {process} && "
        wired += f"ip link set {port} master switch up"
        subprocess.run([*within, wired], check=True)
        up = f"ip address add {self._names[name]}/24 dev eth0 && ip link set eth0 up"
        subprocess.run([*network, up], check=True)
        return Host(name, disk, process, self._process, port)

    def within(self, act: Callable[[], Any]) -> Any:
        """Call something that opens sockets: they stay behind the switch, at `BEHIND`."""
        results: list[Any] = []

        def enter() -> None:
            with open(f"/proc/{self._process}/ns/net") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            results.append(act())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return results[0]

    def _hold(self, setup: str) -> int:
        """Start a process in namespaces of its own, set them up, and return its id."""
        script = f"{setup} && echo {_STARTED} && exec sleep infinity"
        process = subprocess.Popen(
            ["unshare", *_NAMESPACES, "sh", "-ec", script], stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout
        assert process.stdout.readline().strip() == _STARTED
        process.stdout.close()
        return process.pid


@contextmanager
def on_switch(names: Mapping[str, str], mount: Path, folder: Path) -> Generator[Switch]:
    """Yield a switch for hosts that know each other by name.

    Args:
        names: Name to address of each that there may be.
        mount: Where each host has its disk.
        folder: Where the disks are.
    """
    mount.mkdir(exist_ok=True)
    with ExitStack() as stack:
        yield Switch(names, mount, folder, stack)
