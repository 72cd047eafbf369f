"""The fork server may end, at once or while it loads: its pool starts another, and names what is to blame."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workers.running import MODULES, Log, descriptors, is_alive, open_pool, run, until
from zkd.errors import NoWorkers
from zkd.workers import Died, Finished, Limits, Pool
from zkd.workers import server as server_module


async def test_a_killed_fork_server_is_replaced_at_once(pool: Pool) -> None:
    assert pool.server_pid is not None
    running = asyncio.ensure_future(run(pool, "nap", 60))
    await until(lambda: pool.idle == 1)
    before = [*pool.pids, pool.server_pid]
    began = time.monotonic()
    os.kill(pool.server_pid, signal.SIGKILL)
    outcome = await running
    assert isinstance(outcome, Died)
    assert outcome.how == "its fork server ended: killed by signal 9 (out of memory?)"
    waited = await asyncio.gather(run(pool, "plus", 1), run(pool, "plus", 2))
    assert all(isinstance(outcome, Finished) for outcome in waited)
    await until(lambda: pool.idle == 2)
    assert time.monotonic() - began < 5  # 0.3 s on a machine that has nothing else to do
    await until(lambda: not any(map(is_alive, before)))


async def test_fork_servers_killed_again_and_again_leak_nothing(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        before = descriptors()
        for _ in range(2):
            assert pool.server_pid is not None
            server = pool.server_pid
            os.kill(server, signal.SIGKILL)
            await until(lambda server=server: pool.server_pid != server)
            assert isinstance(await run(pool, "plus", 1), Finished)
        await until(lambda: pool.warm == 2)
        assert descriptors() == before


async def test_a_frozen_fork_server_is_replaced_when_a_worker_must_die(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        assert pool.server_pid is not None
        os.kill(pool.server_pid, signal.SIGSTOP)
        outcome = await run(pool, "stick_in_c", timeout_s=0.1)
        assert outcome.__class__.__name__ == "TimedOut"
        assert isinstance(await run(pool, "plus", 1), Finished)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("crashes_on_import", "importing it ended the process: killed by signal 11 (SIGSEGV)"),
        ("exits_on_import", "importing it ended the process: exited with status 3"),
        ("quits_on_import", "SystemExit: enough"),
        ("raises_on_import", "ZeroDivisionError: division by zero"),
        ("not_there", "ModuleNotFoundError: No module named 'not_there'"),
    ],
)
async def test_a_module_that_cannot_be_loaded_is_reported_and_left_out(
    tmp_path: Path, log: Log, module: str, message: str
) -> None:
    async with open_pool(tmp_path, 1, modules=(module, "unruly"), log=log) as pool:
        assert [fault.module for fault in pool.faults] == [module]
        assert pool.faults[0].message.startswith(message)
        assert isinstance(await run(pool, "plus", 1), Finished)
        assert "plus" in {kernel.name for kernel in pool.kernels}
        assert not pool.degraded
    assert [fields["module"] for event, fields in log.events if event == "kernels.not_loaded"] == [module]


async def test_a_module_that_never_finishes_loading_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LOAD_S_MAX", 2.0)
    async with open_pool(tmp_path, 1, modules=("hangs_on_import", "unruly")) as pool:
        assert [fault.module for fault in pool.faults] == ["hangs_on_import"]
        assert isinstance(await run(pool, "plus", 1), Finished)


async def test_modules_that_end_every_worker_degrade_the_pool_but_hang_nothing(tmp_path: Path, log: Log) -> None:
    pool = Pool(1, blob_dir=tmp_path, modules=["kills_workers"], limits=Limits(), log=log)

    async def enter() -> None:
        async with pool:
            pass

    entering = asyncio.ensure_future(enter())
    await until(lambda: pool.degraded)
    await asyncio.sleep(0.3)
    starts = sum(event == "worker.died" for event, _ in log.events)
    assert starts < 12  # slower and slower
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert pool.server_pid is None or not is_alive(pool.server_pid)


async def test_a_fork_server_that_cannot_start_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "numpy.py").write_text("raise ImportError('this numpy is broken')\n")
    monkeypatch.syspath_prepend(broken)
    with pytest.raises(NoWorkers, match="this numpy is broken"):
        async with open_pool(tmp_path):
            pass


PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from zkd.workers import Call, Pool

async def main():
    async with Pool(2, blob_dir=Path(sys.argv[1]), modules=["unruly"]) as pool:
        stuck = [asyncio.ensure_future(pool.run(Call(kernel="stick_in_c"))) for _ in range(2)]
        while pool.idle or len(pool.pids) < 3:
            await asyncio.sleep(0.01)
        assert "numpy" not in sys.modules
        print(json.dumps([pool.server_pid, *pool.pids]), flush=True)
        await asyncio.gather(*stuck)

asyncio.run(main())
"""


async def test_a_killed_daemon_leaves_no_process_behind(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(MODULES)])}
    with subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as daemon:
        assert daemon.stdout is not None
        pids = json.loads(await asyncio.to_thread(daemon.stdout.readline))
        assert len(pids) == 4
        assert all(map(is_alive, pids))
        daemon.kill()
        await until(lambda: not any(map(is_alive, pids)), 5.0)  # two of them in C code with the GIL held
