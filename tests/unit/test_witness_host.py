"""The host of a witness: what its disk does must not become the nodes' trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dds.ledger.facts import Key
from dds.primitives.keys import SigningKey
from dds.proofs.audit import Asked
from dds.proofs.challenge import Target
from dds.protocol.audit_round import AuditRound, Effect, Event, Held, Keep, LookAgain, Reply
from dds.runtime.metrics import Registry
from dds.runtime.witness import Witness, _Watch
from dds.storage.witness_log import WitnessLog
from dds.wire.audit import AuditReply
from dds.wire.ledger import AnyBody


class NoLedger:
    async def find_many(self, wanted: Sequence[Key], /) -> list[Any]:
        raise AssertionError("nothing is looked up here")

    async def submit(self, key: SigningKey, body: AnyBody, /) -> object:
        raise AssertionError("nothing is sent here")


class HeardOne(AuditRound):
    """A round in which request 1 has just proven everything."""

    def step(self, event: Event) -> tuple[Effect, ...]:
        return Keep(0, 8, 255), Reply(1, AuditReply(8, 8, 0))


async def looks_at_nothing(asked: Asked, targets: tuple[Target, ...]) -> tuple[tuple[Target, Held], ...]:
    return ()


async def test_a_node_is_answered_although_the_witness_cannot_write_it_down(tmp_path: Path) -> None:
    log = WitnessLog(tmp_path / "log")
    (tmp_path / "log").rmdir()  # the disk is gone
    with ThreadPoolExecutor(1) as pool:
        witness = Witness(SigningKey(bytes(32)), "desk", NoLedger(), log, pool, looks_at_nothing, Registry())
        watch = _Watch(HeardOne(1, bytes(32), {}))
        reply = watch.replies[1] = asyncio.get_running_loop().create_future()
        await witness._happen(watch, LookAgain())
        assert (await reply).passed == 8
