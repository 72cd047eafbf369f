"""The unit files as text: what systemd's own tools say about them, and that they agree with the program."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from zkd.settings import KEYS, Settings, flat, load

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = ["zkd.service", "zkd@.service"]
EXPOSURE_MAX = 1.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt-get install systemd"
)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_the_sandbox_is_tight(unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", str(SYSTEMD / unit)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    score = re.search(r"Overall exposure level for .*: ([\d.]+)", told.stdout)
    assert score is not None, told.stderr
    assert float(score[1]) <= EXPOSURE_MAX


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("drop_in", [None, "credentials", "memory", "network", "static-user"])
def test_systemd_finds_nothing_odd(tmp_path: Path, unit: str, drop_in: str | None) -> None:
    text = (SYSTEMD / unit).read_text()
    (tmp_path / unit).write_text(text.replace("/opt/zkd/bin/zkd", "/bin/true"))  # which has to exist
    if drop_in:
        (tmp_path / f"{unit}.d").mkdir()
        shutil.copy(SYSTEMD / "drop-ins" / f"{drop_in}.conf", tmp_path / f"{unit}.d")
    # An instance of a template can only be named, and is looked up; as a file of that name it is read as one.
    path = (tmp_path / unit).rename(tmp_path / unit.replace("@", "@a"))
    told = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    about_us = [line for line in told.stderr.splitlines() if "zkd" in line]
    assert (told.returncode, about_us) == (0, [])


def test_the_template_differs_only_where_an_instance_must() -> None:
    plain, template = ((SYSTEMD / unit).read_text().splitlines() for unit in UNITS)
    own = [line for line in template if line not in plain and not line.startswith("#")]
    assert own == [
        "Description=zkd node %i: numeric work for a ZooKeeper ensemble",
        "Environment=ZKD_NODE__NAME=%H-%i",
        "EnvironmentFile=-/etc/zkd/%i.env",
        "StateDirectory=zkd-%i",
    ]
    assert [line for line in plain if line not in template] == [
        "Description=zkd node: numeric work for a ZooKeeper ensemble",
        "StateDirectory=zkd",
    ]


def test_the_example_settings_are_the_defaults() -> None:
    assert load(SYSTEMD / "zkd.toml", {}) == load(None, {})


def test_the_example_settings_show_every_setting_with_its_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\S)", "", (SYSTEMD / "zkd.toml").read_text(), flags=re.MULTILINE)
    path = tmp_path / "zkd.toml"
    path.write_text(text)
    shown = flat(load(path, {}))
    assert set(shown) == set(KEYS)
    given = {
        f"{section}.{key}"
        for section, table in tomllib.loads(text).items()
        for key in table
        if f"{section}.{key}" in KEYS
    }
    assert given | {key for key in KEYS if key.count(".") > 1} == set(KEYS)
    described = re.findall(r"^([a-z_]+) = .*# default:", text, flags=re.MULTILINE)
    defaults = flat(Settings())
    differing = {key for key in given if shown[key] != defaults[key]}
    assert differing <= {key for key in given if key.partition(".")[2] in described}


def test_the_example_settings_mark_what_is_live() -> None:
    text = (SYSTEMD / "zkd.toml").read_text()
    live: set[str] = set()
    section = ""
    for paragraph in text.split("\n\n"):
        if header := re.search(r"^#?\[([a-z.]+)\]", paragraph, flags=re.MULTILINE):
            section = header[1]
        if "[live]" in paragraph and section:
            live |= {f"{section}.{name}" for name in re.findall(r"^#([a-z_]+) = ", paragraph, flags=re.MULTILINE)}
    assert live == {key for key in KEYS if KEYS[key].is_live}
