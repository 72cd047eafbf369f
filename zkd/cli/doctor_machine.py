"""What `zkd doctor` looks at on this machine: shared memory, disk, processors, memory, open files, the unit."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from zkd.cli.output import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkd.settings import Settings

SHM_MIN = 64 * 2**20
DISK_MIN = 2**30
FILES_MIN = 4096
EXPOSED_MAX = 3.0  # as shipped it has less


class Finding(NamedTuple):
    check: str
    verdict: str  # ok | warning | error | info
    found: str
    advice: str = ""


def of_machine(settings: Settings) -> Iterator[Finding]:
    yield _shm()
    yield _data_dir(settings)
    yield _threads(settings)
    yield _memory(settings)
    yield _files()
    yield _unit()


def _memory(settings: Settings) -> Finding:
    """What the workers may take together, against what there is."""
    from zkd.settings import machine_bytes

    there, slots, each = machine_bytes(), settings.node.slots, settings.workers.memory
    if each is None:
        advice = "A kernel that takes all of it takes other programs with it: workers.memory bounds each."
        return Finding("memory", "info", f"{bytes_text(there)}, workers are not bounded", advice)
    found = f"{bytes_text(there)}, {slots} workers with {bytes_text(each)} each"
    if slots * each > there:
        return Finding("memory", "warning", found, "Together more than there is: lower workers.memory or node.slots.")
    return Finding("memory", "ok", found)


def _files() -> Finding:
    """Connections, data files and workers' pipes all take one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_MIN:
        advice = f"LimitNOFILE={FILES_MIN} in the unit, or `ulimit -n {FILES_MIN}`; half of them are for connections."
        return Finding("open files", "warning", f"{soft} at most", advice)
    return Finding("open files", "ok", f"{soft} at most, {hard} if asked for")


def _unit() -> Finding:
    """How exposed systemd finds the installed service: 0 is shut in, 10 is as it comes."""
    import re
    import subprocess

    try:
        done = subprocess.run(
            ["systemd-analyze", "security", "--no-pager", "zkd.service"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("unit", "info", f"systemd-analyze cannot be asked: {error}", "Only for nodes that systemd runs.")
    score = re.search(r"exposure level for zkd\.service: ([0-9.]+)", done.stdout)
    if score is None:
        return Finding("unit", "info", "zkd.service is not installed here", "systemd/README.md says how.")
    advice = "" if float(score[1]) <= EXPOSED_MAX else "systemd/zkd.service shuts it in; look what was changed."
    return Finding("unit", "ok" if not advice else "warning", f"zkd.service has exposure {score[1]} of 10", advice)


def _shm() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Finding("/dev/shm", "warning", str(error), "Workers pass arrays through it: mount a tmpfs there.")
    if free < SHM_MIN:
        return Finding("/dev/shm", "warning", f"{bytes_text(free)} free", "In a container: --shm-size=1g.")
    return Finding("/dev/shm", "ok", f"{bytes_text(free)} free")


def _data_dir(settings: Settings) -> Finding:
    wanted = settings.node.data_dir
    there = wanted
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        advice = "A daemon run by this user could not start: node.data_dir, or --data-dir, names another."
        return Finding("data directory", "warning", f"{wanted} cannot be written by this user", advice)
    free = shutil.disk_usage(there).free
    advice = "" if free >= DISK_MIN else "Large results lie there: make room."
    return Finding("data directory", "ok" if not advice else "warning", f"{wanted}, {bytes_text(free)} free", advice)


def _threads(settings: Settings) -> Finding:
    slots, threads, cpus = settings.node.slots, settings.workers.threads, len(os.sched_getaffinity(0))
    found = f"{slots} slots with {threads} BLAS threads each on {cpus} CPUs"
    if slots * threads > cpus:
        return Finding(
            "BLAS threads", "warning", found, "They will wait for each other: lower workers.threads or slots."
        )
    return Finding("BLAS threads", "ok", found)
