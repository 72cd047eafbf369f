"""``python -m zkd`` and the `zkd` command."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    from zkd.cli import run
    from zkd.cli.exits import crash

    sys.excepthook = crash
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
