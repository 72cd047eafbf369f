"""The daemon as a service: what the command `zkd daemon` and the systemd unit run.

Adds to `zkd.daemon.Daemon` what a process of its own needs: uvloop, logs, signals, systemd's notifications
and watchdog, the exit code. SIGTERM and SIGINT stop in order, a second one cuts that short, SIGHUP reads the
settings again.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

from zkd import log as zkd_log
from zkd.daemon import Daemon, Phase
from zkd.errors import BadSettings
from zkd.notify import Notify
from zkd.settings import Settings, load_with_origins

EX_OK = 0
EX_CONFIG = 78  # systemd does not restart on this: a wrong setting stays wrong


def main(
    settings: Settings,
    reload: Path | None = None,
    overrides: dict[str, object] | None = None,
    origins: Mapping[str, str] | None = None,
) -> int:
    """Run a daemon until it is told to stop; gives the exit code. SIGHUP reads `reload` again."""
    import uvloop

    zkd_log.configure(settings.log.level, settings.log.format)
    notify = Notify.from_env()
    try:
        return uvloop.run(_serve(settings, notify, reload, overrides or {}, origins))
    except BadSettings as error:
        zkd_log.get(node=settings.node.name).error("daemon.failed", error=str(error))
        return EX_CONFIG
    finally:
        notify.close()


async def _serve(
    settings: Settings,
    notify: Notify,
    reload: Path | None,
    overrides: dict[str, object],
    origins: Mapping[str, str] | None,
) -> int:
    daemon = Daemon(settings, patience_s=None, origins=origins)
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()
    assert me is not None
    log = zkd_log.get(node=settings.node.name)

    def asked_to_stop() -> None:
        if daemon.phase is Phase.STARTING:
            me.cancel()
        elif daemon.phase is Phase.STOPPING:
            log.warning("daemon.stop_cut_short")
            daemon.stop(now=True)
        else:
            daemon.stop()

    def asked_to_reload() -> None:
        if daemon.phase is Phase.STARTING:
            log.warning("settings.not_reloaded", because="the daemon is starting", next="send SIGHUP once it is ready")
            return
        notify.reloading()
        try:
            fresh, places = load_with_origins(reload, overrides=overrides)
        except BadSettings as error:
            log.error("settings.refused", error=str(error))
            notify.ready(f"settings refused, the old ones stay: {str(error).splitlines()[0]}")
            return
        restart = daemon.apply(fresh, places)
        notify.ready(f"restart needed for {', '.join(restart)}" if restart else _status_line(daemon))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    loop.add_signal_handler(signal.SIGHUP, asked_to_reload)
    daemon.on_settings = lambda: zkd_log.set_level(daemon.settings.log.level)  # type: ignore[method-assign]
    daemon.on_waiting = lambda waited_s: notify.extend(  # type: ignore[method-assign]
        10.0, f"waiting for ZooKeeper {settings.zookeeper.hosts} ({waited_s:.0f} s)"
    )
    try:
        async with daemon, asyncio.TaskGroup() as group:
            notify.ready(_status_line(daemon))
            supervised = group.create_task(_tell_supervisor(daemon, notify))
            await daemon.run()
            notify.stopping("draining")
            notify.extend(10.0)  # at once: the supervisor below may sleep for longer than the time to stop
            await daemon.drain()
            supervised.cancel()
    except asyncio.CancelledError:
        if not daemon.is_stopping:
            log.info("daemon.stopped_before_ready")
    return EX_OK


async def _tell_supervisor(daemon: Daemon, notify: Notify) -> None:
    """Feed the watchdog from the loop that does the work, so that a wedged loop is found out.

    A lost ZooKeeper is no reason to starve it: a restart would not bring it back.
    """
    interval_s = notify.watchdog_s / 2 if notify.watchdog_s else 5.0
    interval_s = min(interval_s, 5.0)
    said = ""
    while True:
        notify.alive()
        if daemon.phase is Phase.STOPPING:
            notify.extend(10.0, f"draining, {len(daemon.executor.running())} running")
        line = _status_line(daemon)
        if line != said and daemon.phase is Phase.SERVING:
            notify.status(line)
            said = line
        await asyncio.sleep(min(interval_s, 1.0 if daemon.phase is Phase.STOPPING else interval_s))


def _status_line(daemon: Daemon) -> str:
    role = "leads" if daemon.election.reign is not None else "follows"
    connection = daemon.session.state.name.lower()
    return (
        f"{daemon.name} {role}, {connection}, {daemon.executor.slots_used}/{daemon.settings.node.slots} slots,"
        f" {daemon.executor.tally.done} done{f'; {daemon.tuning.fault}' if daemon.tuning.fault else ''}"
    )
