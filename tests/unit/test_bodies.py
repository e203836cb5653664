"""Room for bodies: never more than there is, in order, and nothing lost when a waiter gives up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.errors import LimitError
from dds.transport.bodies import BodyRoom


async def test_waiters_are_served_in_order() -> None:
    room = BodyRoom(100, 10, 5.0)
    await room.take(100)
    order: list[int] = []

    async def taker(size: int) -> None:
        await room.take(size)
        order.append(size)

    tasks = [asyncio.create_task(taker(size)) for size in (80, 10, 30)]
    await asyncio.sleep(0)
    assert room.is_pressed
    room.give_back(50)
    await asyncio.sleep(0)
    assert order == []  # 10 would fit, but 80 came first
    room.give_back(50)
    await asyncio.wait_for(asyncio.gather(*tasks[:2]), 1)
    assert order == [80, 10]
    room.give_back(80)
    await asyncio.wait_for(tasks[2], 1)
    assert room.used == 40


async def test_too_many_waiters_are_refused_at_once() -> None:
    room = BodyRoom(10, 2, 5.0)
    await room.take(10)
    waiting = [asyncio.create_task(room.take(5)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LimitError):
        await room.take(1)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not room.is_pressed


async def test_a_waiter_gives_up_after_its_time() -> None:
    room = BodyRoom(10, 2, 0.01)
    await room.take(10)
    with pytest.raises(LimitError):
        await room.take(5)
    room.give_back(10)
    assert room.used == 0


async def test_a_waiter_cancelled_in_the_moment_of_its_grant_loses_no_room() -> None:
    room = BodyRoom(10, 2, 5.0)
    await room.take(10)
    waiter = asyncio.create_task(room.take(10))
    await asyncio.sleep(0)
    room.give_back(10)  # grants it
    waiter.cancel()  # before it ran again
    await asyncio.gather(waiter, return_exceptions=True)
    assert room.used == 0


async def test_one_waiter_giving_up_lets_the_next_in() -> None:
    room = BodyRoom(10, 5, 5.0)
    await room.take(5)
    large, small = asyncio.create_task(room.take(10)), asyncio.create_task(room.take(5))
    await asyncio.sleep(0)
    large.cancel()
    await asyncio.wait_for(small, 1)
    assert room.used == 10


@given(st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["take", "give", "cancel"])), max_size=60))
def test_room_is_never_oversold_nor_lost(script: list[tuple[int, str]]) -> None:
    async def play() -> None:
        room, held, tasks = BodyRoom(100, 1000, 60.0), [], []

        async def taker(size: int) -> None:
            await room.take(size)
            held.append(size)

        for size, act in script:
            if act == "take":
                tasks.append(asyncio.create_task(taker(size)))
            elif act == "give" and held:
                room.give_back(held.pop(size % len(held)))
            elif act == "cancel" and tasks:
                tasks[size % len(tasks)].cancel()
            await asyncio.sleep(0)
            assert room.used <= 100
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert room.used == sum(held)
        assert not room.is_pressed

    asyncio.run(play())
