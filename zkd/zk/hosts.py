"""Connect strings, as ZooKeeper's clients write them: ``host[:port],host[:port]``."""

from __future__ import annotations

Server = tuple[str, int]

DEFAULT_PORT = 2181


def parse_hosts(hosts: str) -> list[Server]:
    """The servers of a connect string; IPv6 addresses are in brackets.

    A path after the servers (a chroot) is refused: zkd has a root of its own, and events would have other
    paths than requests.
    """
    servers = []
    for text in hosts.split(","):
        host, port = text.strip(), str(DEFAULT_PORT)
        if host.startswith("[") and "]" in host:
            host, _, rest = host[1:].partition("]")
            port = rest.removeprefix(":") or port
        elif host.count(":") == 1:
            host, port = host.split(":")
        if not host or "/" in host + port or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"hosts: expected host:port,host:port,... without a path, got {hosts!r}")
        servers.append((host, int(port)))
    return servers
