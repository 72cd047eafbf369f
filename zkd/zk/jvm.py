"""What it takes to run Apache ZooKeeper on this machine: a Java, the jars, free ports, and a tie to this process.

Only looks around; `zkd.zk.apache` starts and stops.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
from pathlib import Path

from zkd.errors import ZkdError

DEBIAN_JAR = Path("/usr/share/java/zookeeper.jar")
# What Debian's zookeeper.jar forgets in its class path: a place to log to, and half of Netty.
DEBIAN_OTHER_JARS = ("slf4j-simple", "netty-codec", "netty-resolver", "netty-transport-native-unix-common")

# Below the range from which the kernel takes ports for outgoing connections (32768 and up): a port stays
# ours while its server is down and about to restart.
PORTS = range(12_000, 32_000)


class ApacheMissing(ZkdError):
    """There is no Java or no ZooKeeper on this machine. The message says what to install."""


def java() -> str:
    """The Java to run: `JAVA_HOME`'s, or the one on the path."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None:
        raise ApacheMissing("no Java found: apt-get install default-jre-headless (or set JAVA_HOME)")
    return found


def class_path() -> str:
    """ZooKeeper's jars: those of `ZOOKEEPER_HOME` if that is set, else Debian's."""
    home = os.environ.get("ZOOKEEPER_HOME")
    if home:
        jars = sorted([*Path(home).glob("*.jar"), *Path(home, "lib").glob("*.jar")])
        if not any(jar.name.startswith("zookeeper-") for jar in jars):
            raise ApacheMissing(f"no zookeeper-*.jar in ZOOKEEPER_HOME={home} or its lib/")
        return ":".join(str(jar) for jar in jars)
    if not DEBIAN_JAR.exists():
        raise ApacheMissing(
            f"no {DEBIAN_JAR}: apt-get install zookeeper (or set ZOOKEEPER_HOME to an unpacked release)"
        )
    others = (DEBIAN_JAR.with_name(f"{name}.jar") for name in DEBIAN_OTHER_JARS)
    return ":".join(str(jar) for jar in (DEBIAN_JAR, *others) if jar.exists())


def dies_with_us() -> list[str]:
    """A prefix that has the kernel kill the child when this process ends, whatever ends it.

    The signal belongs to the *thread* that forked, so it is set from the main thread only.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    # A parent that died before the signal was set would not cause one: hence the look at who the parent is.
    only_with_parent = 'test "$PPID" = "$0" && exec "$@"'
    return [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", only_with_parent, str(os.getpid())]


_given_out: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on now, and that this process has not given out before."""
    for port in random.SystemRandom().sample(PORTS, 200):
        if port in _given_out:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_out.add(port)
        return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")
