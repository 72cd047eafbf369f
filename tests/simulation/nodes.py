"""Nodes of the cluster: a real daemon on a machine, and who starts it again, as systemd would."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation import doubles
from tests.simulation.loop import Machine
from zkd.errors import BadSettings, ZkdError
from zkd.settings import Node as NodeSettings
from zkd.settings import Settings, Tasks, ZooKeeper

if TYPE_CHECKING:
    from tests.simulation.world import World

RESTART_S = (0.1, 1.5)


@dataclass
class Node:
    """One node through all its boots."""

    world: World
    name: str
    slots: int
    labels: dict[str, str]
    timeout_s: float
    drain_timeout_s: float
    boots: int = 0
    machine: Machine | None = None
    daemon: doubles.Daemon | None = None
    is_wanted: bool = True
    is_over: bool = False  # the daemon has ended by itself
    shadows: list[Machine] = field(default_factory=list)  # former machines that may come back to life

    def boot(self) -> None:
        """A new machine, with the old one's disk."""
        is_alive = self.machine is not None and self.machine.is_up and not self.is_over
        if is_alive or not self.is_wanted:
            return
        self.is_over = False
        self.boots += 1
        self.machine = self.world.machine(f"{self.name}#{self.boots}")
        self.world.disks.setdefault(self.name, doubles.Disk())
        self.daemon = None
        self.world.tell("booted", self.machine)
        self.machine.start(self._live())

    async def _live(self) -> None:
        machine = self.machine
        assert machine is not None
        settings = Settings(
            zookeeper=ZooKeeper(hosts=self.world.hosts, session_timeout_s=self.timeout_s),
            node=NodeSettings(
                name=self.name,
                slots=self.slots,
                labels=self.labels,
                data_dir=Path("/simulated") / self.name,
                drain_timeout_s=self.drain_timeout_s,
            ),
            tasks=Tasks(timeout_s=30.0),
        )
        daemon = doubles.Daemon(settings, patience_s=None)
        if self.machine is machine:
            self.daemon = daemon
        try:
            async with daemon:
                self.world.tell("serving", machine)
                await daemon.run()
        except BadSettings as error:
            # Its former life's session outlived the grace, as changes of ZooKeeper's leader allow. It is told, and
            # started again.
            self.world.happened("a node's name was still taken by its former life")
            self.world.tell("ended", machine, error)
        except ZkdError as error:
            self.world.broken(f"{machine}: the daemon ended by {type(error).__name__}: {error}")
        except Exception as error:
            from tests.simulation.world import _said

            self.world.broken(f"{machine}: the daemon ended by {_said(error)}")
        if self.machine is machine:
            self.daemon = None
            self.is_over = True
            self.world.loop.after(machine.rng.uniform(*RESTART_S), self.boot)

    def leave_shadow(self) -> None:
        """The present machine is believed dead and is not."""
        assert self.machine is not None
        self.shadows.append(self.machine)
        self.machine = self.daemon = None

    def drop_shadows(self) -> None:
        for machine in self.shadows:
            machine.crash()

    @property
    def is_serving(self) -> bool:
        return (
            self.machine is not None
            and self.machine.is_up
            and self.daemon is not None
            and self.daemon.phase.value == "serving"
        )

    def stop(self) -> None:
        """An orderly stop, as by SIGTERM."""
        machine, daemon = self.machine, self.daemon
        if machine is not None and machine.is_up and self.is_serving:
            assert daemon is not None
            self.world.tell("told to stop", machine)
            self.world.witness.drained.add(self.name)
            machine.deliver(daemon.stop)


async def sleep(machine: Machine, longest_s: float) -> None:
    await asyncio.sleep(machine.rng.uniform(0, longest_s))
