"""docs/configuration.md lists every setting as the program knows it, and its program runs."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zkd.core.setting_table import table

if TYPE_CHECKING:
    from zkd.zk.server import EmbeddedServer

TEXT = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()


def test_the_table_is_what_the_program_knows() -> None:
    rows = TEXT.split("<!-- settings -->")[1].split("\n\n")[1].splitlines()[2:]
    documented = [[cell.strip().strip("`") for cell in row.split("|")[1:-2]] for row in rows]
    assert documented == [
        [row.key, row.kind, row.default, "yes" if row.is_central else "", "live" if row.is_live else "restart"]
        for row in table()
    ]


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
