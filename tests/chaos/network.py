"""A network of one's own: a bridge, and a namespace with an address for each server and each daemon.

    this process, submitters: 10.211.B.254 --- bridge --- 10.211.B.1..3    servers
                                                   '----- 10.211.B.11..    daemons

A link that is down drops every packet and tells nobody, as a pulled cable does; a route into a black hole does so in
one direction, or towards one peer. It takes root, `ip` and `nsenter`; where these are missing all run on 127.0.0.1,
and only what proxies can do is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MARK = "zk"  # our bridges and namespaces are named after the process that made them


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Place:
    """Where one process runs."""

    host: str
    prefix: tuple[str, ...] = ()
    namespace: str = ""
    link: str = ""  # our end of its cable


@dataclass
class Network:
    """Places by name. Without namespaces they are all the same."""

    bridge: str = ""
    host: str = "127.0.0.1"
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        return bool(self.bridge)

    def add(self, name: str, number: int) -> Place:
        """A place with the address number `number`."""
        if not self.is_real:
            self.places[name] = Place(self.host)
            return self.places[name]
        namespace, address = f"{self.bridge}{name}", f"{self.host.rpartition('.')[0]}.{number}"
        place = Place(address, ("nsenter", f"--net=/run/netns/{namespace}", "--"), namespace, namespace)
        ip("netns", "add", namespace)
        ip("link", "add", place.link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", place.link, "master", self.bridge, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        self.places[name] = place
        return place

    def unplug(self, name: str) -> None:
        ip("link", "set", self.places[name].link, "down")

    def plug(self, name: str) -> None:
        ip("link", "set", self.places[name].link, "up")

    def deafen(self, speaker: str, listener: str) -> None:
        """What `speaker` sends to `listener` is lost. An empty name is this process and the submitters."""
        ip(*self._at(speaker), "route", "replace", "blackhole", f"{self._address(listener)}/32")

    def undeafen(self, speaker: str, listener: str) -> None:
        ip(*self._at(speaker), "route", "del", "blackhole", f"{self._address(listener)}/32")

    def _at(self, name: str) -> tuple[str, ...]:
        return ("-n", self.places[name].namespace) if name else ()

    def _address(self, name: str) -> str:
        return self.places[name].host if name else self.host


def is_possible() -> bool:
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "nsenter"))


@contextmanager
def opened(*, wanted: bool = True) -> Iterator[Network]:
    """A network that is gone afterwards; what killed runs have left behind is removed, too."""
    if not wanted or not is_possible():
        yield Network()
        return
    sweep()
    bridge = f"{MARK}{os.getpid()}"
    network = Network(bridge, f"10.211.{os.getpid() % 250}.254")
    try:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("addr", "add", f"{network.host}/24", "dev", bridge)
            ip("link", "set", bridge, "up")
        except subprocess.CalledProcessError:  # root in a container that may not
            yield Network()
            return
        yield network
    finally:
        remove(bridge)


def remove(bridge: str) -> None:
    for line in ip("netns", "list").splitlines():
        if line.split()[0].startswith(bridge):
            subprocess.run(["ip", "netns", "del", line.split()[0]], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def sweep() -> None:
    """Remove what belongs to processes that are gone."""
    for line in ip("-o", "link", "show", "type", "bridge").splitlines():
        name = line.split(":")[1].strip()
        if name.startswith(MARK) and name[len(MARK) :].isdigit() and not os.path.exists(f"/proc/{name[len(MARK) :]}"):
            remove(name)
