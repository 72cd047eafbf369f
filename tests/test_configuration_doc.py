"""The program in docs/configuration.md runs. Its table of settings is looked at in test_settings.py."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zkd.zk.server import EmbeddedServer

TEXT = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()


async def test_the_program_follows_its_configuration(embedded: EmbeddedServer) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"ZKD_HOSTS": embedded.connect_string},
    )
    out, _ = await child.communicate(program.encode())
    assert out == b"0.1 []\n0.2 []\n"
