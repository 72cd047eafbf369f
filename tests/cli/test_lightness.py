"""`zkd --help` is quick, because it loads next to nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zkd.cli import COMMANDS, cli

CPU_MAX_S = 0.12
HEAVY = ("numpy", "asyncio", "structlog", "aiohttp", "msgspec", "aiozk", "rich", "uvloop")


def cpu_of(*arguments: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "zkd", *arguments], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_stays_below_its_budget(arguments: list[str]) -> None:
    assert min(cpu_of(*arguments) for _ in range(5)) < CPU_MAX_S


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["get", "--help"], ["train", "start", "--help"], ["nope"]],
)
def test_help_loads_neither_numpy_nor_asyncio(arguments: list[str]) -> None:
    code = (
        "import sys; from zkd.cli import run; run(sys.argv[1:]);"
        f"print('loaded', *(name for name in {HEAVY} if name in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded"


def test_importing_zkd_loads_nothing() -> None:
    code = f"import sys, zkd; print(*(name for name in {HEAVY} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_completion_loads_neither_numpy_nor_asyncio() -> None:
    env = {**os.environ, "_ZKD_COMPLETE": "bash_complete", "COMP_WORDS": "zkd d", "COMP_CWORD": "1"}
    code = (
        "import sys; from zkd.__main__ import main\n"
        "try:\n main()\n"
        "finally:\n print(*(name for name in ('numpy', 'asyncio') if name in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    lines = ran.stdout.split("\n")
    assert {"plain,describe", "plain,dev", "plain,daemon", "plain,doctor"} <= set(lines)
    assert lines[-2] == ""


def test_every_public_name_is_there() -> None:
    import zkd

    for name in zkd.__all__:
        assert getattr(zkd, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = zkd.nonsense


def test_every_command_has_help_and_the_words_that_are_shown() -> None:
    import click

    for name, (_, text) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert text.endswith(".")
        assert command.get_help(click.Context(command, info_name=name))
