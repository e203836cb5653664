"""Which router is asked, what is told of its answer, and that nothing stays mapped."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from dds.primitives.errors import UnavailableError
from dds.runtime.port_keeper import LIFETIME_S, Mapped, Port, PortKeeper

PORTS = (Port("TCP", 4433), Port("UDP", 4434))


@dataclass
class Box:
    """A router in memory."""

    host: str = "5.5.5.1"
    works: bool = True
    mapped: set[Port] = field(default_factory=set)
    room: int = 2  # for so many ports

    async def map(self, port: Port) -> Mapped:
        if not self.works or len(self.mapped) == self.room:
            raise UnavailableError("it does not answer, or maps no more")
        self.mapped.add(port)
        return Mapped(port, self.host, port.number + 1, LIFETIME_S)

    async def unmap(self, mapped: Mapped) -> None:
        self.mapped.discard(mapped.port)


async def told_by(*routers: Box) -> list[list[str]]:
    """What is told while the keeper runs for as long as it does anything."""
    told: list[list[str]] = []
    keeper = PortKeeper(PORTS, lambda mapped: told.append([f"{each.host}:{each.external_port}" for each in mapped]), routers)
    task = asyncio.create_task(keeper.run())
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return told


async def test_the_first_router_that_answers_maps_every_port_and_gives_all_of_it_back() -> None:
    silent, good, unused = Box(works=False), Box(), Box()
    assert await told_by(silent, good, unused) == [["5.5.5.1:4434", "5.5.5.1:4435"]]
    assert good.mapped == set() and unused.mapped == set()


async def test_a_router_that_maps_only_some_of_the_ports_keeps_none_of_them() -> None:
    full, good = Box(room=1), Box()
    assert await told_by(full, good) == [["5.5.5.1:4434", "5.5.5.1:4435"]]
    assert full.mapped == set()


@pytest.mark.parametrize("host", ["192.168.1.1", "100.64.0.7", "nonsense", "127.0.0.1"])
async def test_a_router_behind_another_router_is_not_believed_to_be_outside(host: str) -> None:
    assert await told_by(Box(host=host)) == []
