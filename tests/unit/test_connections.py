"""Admission and deadlines of connections, without sockets or clocks."""

from __future__ import annotations

import pytest

from dds.transport.connections import Connection, ConnectionTable, Phase, transfer_deadline_s
from dds.transport.limits import ServerCounters, ServerLimits

LIMITS = ServerLimits(connections_max=4, connections_per_address_max=2, newcomer_patience_s=2.0, headers_timeout_s=10.0)


class House:
    def __init__(self, limits: ServerLimits = LIMITS) -> None:
        self.counters = ServerCounters()
        self.table = ConnectionTable(limits, self.counters)
        self.aborted: list[Connection] = []

    def arrive(self, address: str, now_s: float, phase: Phase = Phase.FRESH) -> Connection | None:
        connection = Connection(address, lambda: self.aborted.append(connection), now_s, phase)
        return connection if self.table.admit(connection, now_s) else None


def test_an_address_has_its_own_limit() -> None:
    house = House()
    assert [house.arrive("a", 0.0) is not None for _ in range(3)] == [True, True, False]
    assert house.arrive("b", 0.0) is not None
    assert house.counters.connections_refused == 1
    assert house.counters.connections_now == 3


def test_the_longest_quiet_connection_makes_room_for_a_newcomer() -> None:
    house = House()
    first, second = house.arrive("a", 0.0), house.arrive("a", 1.0)
    assert second is not None
    assert house.arrive("a", 3.0) is not None
    assert house.aborted == [first]
    assert len(house.table) == 2


def test_no_connection_at_work_makes_room() -> None:
    house = House()
    for phase in (Phase.RECEIVING, Phase.HANDLING, Phase.SENDING, Phase.WAITING):
        house.arrive(phase.name, 0.0, phase)
    assert house.arrive("x", 100.0) is None
    assert house.aborted == []


def test_a_crowd_from_one_address_displaces_only_its_own() -> None:
    house = House()
    other = house.arrive("b", 0.0)
    house.arrive("a", 1.0)
    house.arrive("a", 1.0)
    for now_s in (10.0, 20.0, 30.0):
        assert house.arrive("a", now_s) is not None
    assert other not in house.aborted


def test_leaving_twice_counts_once() -> None:
    house = House()
    one = house.arrive("a", 0.0)
    house.arrive("a", 0.0)
    assert one is not None
    house.table.remove(one)
    house.table.remove(one)
    assert len(house.table) == 1
    assert house.arrive("a", 0.0) is not None
    assert house.arrive("a", 0.0) is None


def test_a_connection_without_a_request_is_cut_at_its_deadline() -> None:
    house = House()
    fresh = house.arrive("a", 0.0)
    house.table.cut_overdue(10.0, pressed=False)
    assert house.aborted == []
    house.table.cut_overdue(10.1, pressed=False)
    assert house.aborted == [fresh]
    assert house.counters.connections_timed_out == 1


@pytest.mark.parametrize("phase", [Phase.RECEIVING, Phase.SENDING])
def test_a_slow_transfer_is_cut_sooner_while_others_wait(phase: Phase) -> None:
    house = House()
    connection = house.arrive("a", 0.0)
    assert connection is not None
    connection.enter(phase, 0.0, moving_bytes=1 << 20)
    assert transfer_deadline_s(1 << 20, LIMITS, pressed=True) == 6.0
    house.table.cut_overdue(6.5, pressed=False)
    assert house.aborted == []
    house.table.cut_overdue(6.5, pressed=True)
    assert house.aborted == [connection]
