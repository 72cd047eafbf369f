"""One node's store of segments, killed and cut off from power at boundaries of all that it does with files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENDS = 60  # of some 330, which take a minute: `python -m tests.data.store_lives DIRECTORY SEED 1 10000`


def test_what_is_here_is_exact_and_durable_wherever_a_life_ends(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.data.store_lives", str(tmp_path / "lives"), "1", "0", str(ENDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{ENDS} ends, 0 wrong" in run.stdout
