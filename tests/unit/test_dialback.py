"""Dialling back between real servers, and what a hostile caller cannot make of it: a scanner, an amplifier, a burden."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from dds.primitives.errors import LimitError, PeerRefused
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB, MIB
from dds.protocol import dialback as rules
from dds.protocol.dialback import DialbackGate, choose_observers, may_dial
from dds.protocol.peers import Health, Peer, PeerTable
from dds.runtime import dialback
from dds.runtime.dialback import DialbackHost, DialbackParts, ask_self_test
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import PeerClient
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer
from dds.wire.codec import decode
from dds.wire.dialback import DIALBACK_REPLY_BYTES_MAX, DialbackReply, DialbackRequest, SelfTestRequest
from dds.wire.discovery import NODE, NodeRecord, sign_record
from tests.discovery_samples import NETWORK, node_id, node_record, signing_key

QUICK_S = 0.3


class Site:
    """One node that can be dialled back and dials back."""

    def __init__(self, number: int) -> None:
        self.key, self.node_id = signing_key(number), node_id(number)
        self.number, self.addresses = number, [""]
        self.table = PeerTable(NETWORK, self.node_id, number.to_bytes(32, "big"))

    async def start(self, stack: AsyncExitStack) -> None:
        self.client = await stack.enter_async_context(PeerClient(self.key, network=NETWORK))
        parts = DialbackParts(
            self.key,
            NETWORK,
            self.table,
            self.client,
            lambda node: None,
            lambda node, ok, latency_s: self.table.outcome(node, ok, now_ms(), latency_s),
            self.record,
            Bandwidth(),
            connect_timeout_s=QUICK_S,
        )
        self.host = DialbackHost(parts)
        self.server = PeerServer(self.key, network=NETWORK, routes=[Route("GET", "/v1/node", self._node), *self.host.routes()])
        self.port = await self.server.start()
        stack.push_async_callback(self.server.stop, 0)
        self.addresses = [f"127.0.0.1:{self.port}"]

    async def _node(self, _request: Request) -> Response:
        return Response(200, self.record())

    def record(self) -> bytes:
        return sign_record(self.key, NODE, self.described())

    def described(self) -> NodeRecord:
        made = node_record(self.key, seq=now_ms())
        place = {"region": f"region-{self.number}", "operator": f"operator-{self.number}"}
        return msgspec.structs.replace(made, addresses=self.addresses, **place)

    def knows(self, *others: Site) -> None:
        for other in others:
            self.table.offer(other.record(), other.node_id, now_ms())
            self.client.learn(other.node_id, [("127.0.0.1", other.port)])

    async def ask(self, other: Site, record: bytes, *, nonce: bytes = b"", transfer_bytes: int = 0) -> DialbackReply:
        self.client.learn(other.node_id, [("127.0.0.1", other.port)])
        request = DialbackRequest(record, nonce or secrets.token_bytes(16), transfer_bytes)
        return await self.client.call(
            other.node_id, "/v1/dialback", request, DialbackReply, max_bytes=DIALBACK_REPLY_BYTES_MAX, timeout_s=10
        )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def sites(count: int) -> AsyncIterator[list[Site]]:
    async with AsyncExitStack() as stack:
        made = [Site(number + 1) for number in range(count)]
        for site in made:
            await site.start(stack)
        for site in made:
            site.knows(*(other for other in made if other is not site))
        yield made


class Victim:
    """Somebody else's port: counts who connects."""

    def __init__(self, host: str) -> None:
        self.host, self.connections = host, 0

    async def __aenter__(self) -> Victim:
        self._server = await asyncio.start_server(self._count, self.host, 0)
        self.address = f"{self.host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _count(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


async def test_a_node_learns_how_others_of_other_regions_see_it() -> None:
    async with sites(4) as (node, *others):
        reply = await ask_self_test(await _its_own_client(node), node.node_id, SelfTestRequest(3, MIB))
        assert {each.node_id for each in reply.observations} == {other.node_id for other in others}
        for each in reply.observations:
            assert each.problem == ""
            assert each.reply is not None
            assert [(seen.address, seen.problem) for seen in each.reply.seen] == [(node.addresses[0], "")]
            assert each.reply.seen[0].round_trip_us > 0
            assert each.reply.seen[0].bytes_per_s > 0
            assert each.reply.health == Health.HEALTHY  # it has just been dialled
            assert abs(each.clock_skew_ms) < 60_000


async def _its_own_client(node: Site) -> PeerClient:
    node.client.learn(node.node_id, [("127.0.0.1", node.port)])
    return node.client


async def test_an_address_where_nobody_or_somebody_else_answers_is_told_with_its_problem() -> None:
    async with sites(3) as (node, observer, other):
        async with Victim("127.0.0.1") as gone:
            pass
        node.addresses = [gone.address, f"127.0.0.1:{other.port}", f"127.0.0.1:{node.port}"]
        reply = await node.ask(observer, node.record())
        assert [bool(seen.problem) for seen in reply.seen] == [True, True, False]
        assert "key" in reply.seen[1].problem


async def test_a_port_that_says_nothing_costs_an_observer_no_more_than_its_patience() -> None:
    async with sites(2) as (node, observer):
        silent = await asyncio.start_server(lambda _reader, _writer: asyncio.sleep(60), "127.0.0.1", 0)
        node.addresses = [f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"]
        began = time.monotonic()
        reply = await node.ask(observer, node.record())
        silent.close()
        assert reply.seen[0].problem
        assert time.monotonic() - began < 8  # of the 60 that the port would hold it


async def test_an_address_that_is_not_where_the_caller_came_from_is_never_dialled() -> None:
    async with sites(2) as (caller, observer), Victim("127.0.0.2") as victim:
        caller.addresses = [victim.address, f"127.0.0.1:{caller.port}"]
        reply = await caller.ask(observer, caller.record())
        assert victim.connections == 0
        assert "not tried" in reply.seen[0].problem
        assert reply.seen[1].problem == ""


async def test_nobody_who_came_through_a_tunnel_has_a_node_dial_its_own_machine() -> None:
    """Over iroh everybody comes from 127.0.0.1, and would learn which ports of the node's machine are open."""
    async with sites(2) as (caller, observer), Victim("127.0.0.1") as victim:
        observer.host._parts = dataclasses.replace(observer.host._parts, tunnelled=True)
        caller.addresses = [victim.address]
        reply = await caller.ask(observer, caller.record())
        assert victim.connections == 0
        assert "not tried" in reply.seen[0].problem


async def test_names_that_hang_hold_up_neither_the_node_nor_what_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, looked_up = threading.Event(), []
    known = socket.getaddrinfo

    def hang(host: str, *args: object, **kwargs: object) -> object:
        if not host.endswith(".invalid"):
            return known(host, *args, **kwargs)  # type: ignore[arg-type]
        looked_up.append(threading.current_thread().name)
        let_go.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(dialback, "RESOLVE_TIMEOUT_S", 0.05)
    try:
        async with sites(2) as (caller, observer):
            caller.addresses = [f"n{number}.invalid:1" for number in range(3)] + [f"127.0.0.1:{caller.port}"]
            for _ in range(2):
                *names, literal = (await caller.ask(observer, caller.record())).seen
                assert all("not tried" in seen.problem for seen in names)
                assert literal.problem == ""
            assert "too many names" in names[0].problem
            assert len(looked_up) == dialback.LOOKUPS_MAX
            assert all(name.startswith("dialback-names") for name in looked_up)  # not where all else is done
    finally:
        let_go.set()


async def test_a_record_of_another_node_or_of_no_key_or_of_old_is_refused_and_nobody_is_dialled() -> None:
    async with sites(3) as (caller, observer, other), Victim("127.0.0.1") as victim:
        other.addresses = [victim.address]
        good = other.record()
        old = msgspec.structs.replace(caller.described(), seq=1, expires_ms=2)
        forged = bytearray(caller.record())
        forged[-70] ^= 1
        for record in (good, sign_record(caller.key, NODE, old), bytes(forged), b"nonsense"):
            with pytest.raises(PeerRefused) as refused:
                await caller.ask(observer, record)
            assert refused.value.status in (400, 422)
        assert victim.connections == 0


async def test_a_flood_is_refused_and_others_are_still_served() -> None:
    async with sites(3) as (hostile, honest, observer):
        hostile.addresses = []
        asked = [hostile.ask(observer, hostile.record()) for _ in range(40)]
        said = await asyncio.gather(*asked, return_exceptions=True)
        refused = [each for each in said if isinstance(each, PeerRefused)]
        assert len(said) - len(refused) <= rules.PEER_BURST
        assert {each.status for each in refused} == {429}
        assert (await honest.ask(observer, honest.record())).seen[0].problem == ""


async def test_bytes_are_sent_once_and_only_to_whom_they_were_offered() -> None:
    async with sites(2) as (node, observer), PeerClient(signing_key(77), network=NETWORK) as stranger:
        seen: list[int] = []

        async def steal(request: Request) -> Response:
            """The observer lets a stranger try its nonce, then fetches twice itself."""
            nonce = decode(request.body, DialbackRequest).nonce.hex()
            for thief in (stranger, observer.client, observer.client):
                thief.learn(node.node_id, [("127.0.0.1", node.port)])
                try:
                    got = await thief.get(node.node_id, f"/v1/dialback/{nonce}", max_bytes=MIB, timeout_s=5)
                    seen.append(len(got))
                except PeerRefused as error:
                    seen.append(-error.status)
            return Response(500)

        await observer.server.stop(0)
        liar = PeerServer(observer.key, network=NETWORK, routes=[Route("POST", "/v1/dialback", steal, 64 * KIB)])
        node.client.learn(observer.node_id, [("127.0.0.1", await liar.start())])
        reply = await ask_self_test(await _its_own_client(node), node.node_id, SelfTestRequest(1, 64 * KIB))
        await liar.stop(0)
        assert seen == [-404, 64 * KIB, -404]
        assert [(each.reply, bool(each.problem)) for each in reply.observations] == [(None, True)]


async def test_only_its_own_key_lets_a_node_test_itself() -> None:
    async with sites(2) as (node, stranger):
        with pytest.raises(PeerRefused) as refused:
            await ask_self_test(stranger.client, node.node_id, SelfTestRequest(1, 0))
        assert refused.value.status == 403
        async with PeerClient(None, network=NETWORK) as anonymous:
            anonymous.learn(node.node_id, [("127.0.0.1", node.port)])
            with pytest.raises(PeerRefused) as refused:
                await ask_self_test(anonymous, node.node_id, SelfTestRequest(1, 0))
            assert refused.value.status == 401


def test_a_callers_budget_comes_back_with_time_and_is_no_others() -> None:
    gate, caller, other = DialbackGate(), node_id(1), node_id(2)
    for _ in range(rules.PEER_BURST):
        gate.enter(caller, 100.0)
        gate.leave()
    with pytest.raises(LimitError):
        gate.enter(caller, 100.0)
    gate.enter(other, 100.0)
    gate.leave()
    with pytest.raises(LimitError):
        gate.enter(caller, 100.0 + rules.PEER_EVERY_S - 0.1)
    gate.enter(caller, 100.0 + rules.PEER_EVERY_S)


def test_many_callers_together_have_one_budget_and_at_most_so_many_are_served_at_once() -> None:
    gate = DialbackGate()
    for number in range(rules.TOTAL_BURST):
        gate.enter(NodeID(number.to_bytes(32, "big")), 5.0)
        gate.leave()
    with pytest.raises(LimitError):
        gate.enter(node_id(9), 5.0)
    for number in range(rules.DIALBACKS_AT_ONCE_MAX):
        gate.enter(node_id(20 + number), 1_000.0)
    with pytest.raises(LimitError, match="already"):
        gate.enter(node_id(40), 1_000.0)
    gate.leave()
    gate.enter(node_id(40), 1_000.0)


def test_what_is_remembered_of_callers_is_bounded_and_forgotten_only_when_it_no_longer_matters() -> None:
    assert rules.CALLERS_REMEMBERED_MAX * rules.TOTAL_EVERY_S - rules.TOTAL_BURST > rules.PEER_EVERY_S * rules.PEER_BURST
    gate = DialbackGate()
    for number in range(3 * rules.CALLERS_REMEMBERED_MAX):
        gate.enter(NodeID(number.to_bytes(32, "big")), number * rules.TOTAL_EVERY_S)
        gate.leave()
    assert len(gate._peer_free_s) == rules.CALLERS_REMEMBERED_MAX


@pytest.mark.parametrize(
    ("resolved", "source", "expected"),
    [
        (["203.0.113.9"], "203.0.113.9", True),
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9", True),
        (["203.0.113.9"], "::ffff:203.0.113.9", True),
        (["2001:db8::1"], "2001:0db8:0::1", True),
        (["fe80::1%eth0"], "fe80::1", True),
        (["203.0.113.10"], "203.0.113.9", False),
        ([], "203.0.113.9", False),
        (["127.0.0.1"], "203.0.113.9", False),
        (["203.0.113.9"], "not an address", False),
    ],
)
def test_only_the_machine_that_asked_is_dialled(resolved: list[str], source: str, expected: bool) -> None:
    assert may_dial(resolved, source) is expected


def _peer(number: int, region: str, operator: str) -> Peer:
    record = msgspec.structs.replace(node_record(signing_key(number)), region=region, operator=operator)
    return Peer(node_id(number), ("127.0.0.1:1",), record)


def test_observers_are_of_other_regions_and_operators_as_far_as_there_are() -> None:
    own = msgspec.structs.replace(node_record(SigningKey(bytes(32))), operator="mine")
    near = [_peer(number, "near", f"operator-{number}") for number in range(1, 5)]
    far = [_peer(5, "far", "operator-1"), _peer(6, "far", "mine"), _peer(7, "other", "mine")]
    chosen = choose_observers([*near, *far], own, 3)
    assert [peer.node_id for peer in chosen] == [node_id(1), node_id(5), node_id(7)]
    assert len(choose_observers([*near, *far], own, 99)) == 7
    assert choose_observers([], own, 5) == []
