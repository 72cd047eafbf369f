"""A machine with a real systemd as process 1, booted in seconds from this machine's own /usr.

`systemd-nspawn --volatile=yes` gives it an empty, passing root and a network of its own; zkd is installed in
/opt/zkd, as systemd/README.md says, on Debian's Python and with the packages of the environment that runs the
tests. Needs root with CAP_SYS_ADMIN; `why_not` says what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PYTHON = Path("/usr/bin/python3")
REPOSITORY = Path(__file__).parents[2]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
BOOT_S = 60.0
HALT_S = 20.0


def why_not() -> str | None:
    """Why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "a machine with systemd needs root"
    if shutil.which("systemd-nspawn") is None:
        return "a machine with systemd needs systemd-nspawn: apt-get install systemd-container"
    if not PYTHON.exists():
        return f"a machine with systemd needs {PYTHON}"
    ask = "import sys; print(*sys.version_info[:2], sep='.')"
    told = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=False)
    if told.stdout.strip() != VERSION:
        return f"a machine with systemd has {PYTHON}, and needs packages for it: those here are for Python {VERSION}"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return f"a machine with systemd needs CAP_SYS_ADMIN, which this container lacks: {probe.stderr.strip()}"
    return None


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """The first true value of `condition`, asked again and again."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
    return value


class Machine:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.install = directory / "zkd"
        self.log = directory / "console.log"

    def __enter__(self) -> Machine:
        self._install()
        packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        command = [
            *("systemd-nspawn", "-D", "/", "--volatile=yes", "--boot", "--private-network", "--register=no"),
            *("--keep-unit", "--link-journal=no", "--console=pipe", "-M", f"zkd-test-{os.getpid()}"),
            *(f"--bind-ro={self.install}:/opt/zkd", f"--bind-ro={packages}:/opt/zkd/packages"),
        ]
        with open(self.log, "wb") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        try:
            wait_until(self._has_booted, f"the machine booted, see {self.log}", BOOT_S)
            self.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._nspawn.send_signal(signal.SIGTERM)  # an orderly power-off
        try:
            self._nspawn.wait(HALT_S)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def run(self, *command: str, check: bool = True, timeout_s: float = 60.0) -> str:
        """What a command prints inside the machine."""
        inside = ["nsenter", "-t", str(self._init), "--all", "--root", "--wd", "--", *command]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "SYSTEMD_COLORS": "0"}
        done = subprocess.run(inside, env=env, capture_output=True, text=True, check=False, timeout=timeout_s, cwd="/")
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def python(self, program: str, *arguments: str, timeout_s: float = 60.0) -> Any:
        """What a program prints, as JSON, on the Python and with the zkd of the machine."""
        return json.loads(self.run("/opt/zkd/bin/python", "-c", program, *arguments, timeout_s=timeout_s))

    def write(self, path: str, text: str) -> None:
        outside = Path(f"/proc/{self._init}/root{path}")
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_text(text)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, as `systemctl show` has them."""
        lines = self.run("systemctl", "show", unit, f"--property={','.join(names)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, *match: str) -> list[dict[str, Any]]:
        """The entries of the journal that match, oldest first."""
        self.run("journalctl", "--sync", check=False)
        lines = self.run("journalctl", "-o", "json", "--all", "--no-pager", *match, check=False).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _install(self) -> None:
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", self.install], check=True)
        site_packages = self.install / f"lib/python{VERSION}/site-packages"
        shutil.copytree(REPOSITORY / "zkd", site_packages / "zkd", ignore=shutil.ignore_patterns("__pycache__"))
        (self.install / "packages").mkdir()
        (site_packages / "packages.pth").write_text("/opt/zkd/packages\n")
        script = self.install / "bin/zkd"
        script.write_text("#!/opt/zkd/bin/python\nimport sys\nfrom zkd.__main__ import main\nsys.exit(main())\n")
        script.chmod(0o755)
        self.install.chmod(0o755)

    def _has_booted(self) -> bool:
        assert self._nspawn.poll() is None, f"systemd-nspawn ended: {self.log.read_text()}"
        # Looked up each time: the first child of systemd-nspawn only prepares the one that becomes process 1.
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._init = int(children[0])
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")
