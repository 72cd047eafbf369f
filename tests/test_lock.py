"""What gets installed is what was locked: pyproject.toml, uv.lock and the exported requirements agree.

After a change of pyproject.toml: `uv lock`, and the command at the top of each requirements.txt.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parent.parent
LOCK = tomllib.loads((TOP / "uv.lock").read_text())
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
PACKAGES = {(package["name"], package["version"]): package for package in LOCK["package"]}

REQUIREMENT = re.compile(r"^([a-z0-9-]+)==(\S+)((?: ;[^\\\n]*)?)((?: \\\n    --hash=\S+)+)$", re.MULTILINE)


def specifier(requirement: dict[str, Any]) -> str:
    extras = f"[{','.join(requirement['extras'])}]" if "extras" in requirement else ""
    return f"{requirement['name']}{extras}{requirement.get('specifier', '')}"


def test_the_lock_knows_the_dependencies_of_the_project() -> None:
    (zkd,) = [package for package in LOCK["package"] if package["name"] == "zkd"]
    project = PROJECT["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    assert sorted(map(specifier, zkd["metadata"]["requires-dist"])) == sorted(asked)
    locked = {group: sorted(map(specifier, each)) for group, each in zkd["metadata"]["requires-dev"].items()}
    assert locked == {group: sorted(each) for group, each in PROJECT["dependency-groups"].items()}


@pytest.mark.parametrize("name", ["tests/requirements.txt", "examples/requirements.txt"])
def test_requirements_are_an_export_of_the_lock(name: str) -> None:
    text = (TOP / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith(("#", "--hash"))]
    found = REQUIREMENT.findall(text)
    assert len(found) == len(lines)
    for package, version, _, hashes in found:
        locked = PACKAGES[package, version]
        files = [*locked.get("wheels", []), *([locked["sdist"]] if "sdist" in locked else [])]
        assert set(re.findall(r"--hash=(\S+)", hashes)) == {file["hash"] for file in files}
    groups = ["build", "dev"] if name.startswith("tests") else ["build"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["examples"],
        *(each for group in groups for each in PROJECT["dependency-groups"][group]),
    ]
    assert {re.split(r"[^a-z0-9-]", each)[0] for each in wanted} <= {package for package, *_ in found}


def test_the_lock_points_at_the_public_index() -> None:
    hosts = set(re.findall(r"\w+://[^/\"]+", (TOP / "uv.lock").read_text()))
    assert hosts == {"https://pypi.org", "https://files.pythonhosted.org"}
