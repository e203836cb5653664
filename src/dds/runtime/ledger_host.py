"""A ledger's host: an engine behind HTTP, for clients who trust this host's key.

Decides what is answered and how much of it, and signs heads. Does not order transactions (the engine does) nor judge them (the
rules do). Transactions are taken from anybody: they carry their own signatures. Whatever may touch the disk runs in a small
pool of threads. A client that lost an answer sends the same bytes again and says so: it is told what became of them, once.
Without its saying so the same bytes are a second transaction with a used nonce: two programs with one key make equal ones.

Source: docs/spec/ledger.md, "App hash and proofs" and "Blocks"; wire/ledger_api.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, ParamSpec, TypeVar

from dds import __version__
from dds.engines.port import Engine, Outcome
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.primitives.errors import InputError, NotFoundError
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB, MIB
from dds.runtime.metrics import CONTENT_TYPE as METRICS_TYPE
from dds.runtime.metrics import Registry
from dds.runtime.node_metrics import add_process_metrics, add_request_metrics
from dds.storage.ledger_store import StoredEvent
from dds.transport.limits import ServerLimits
from dds.transport.routes import Request, Response, Route, message_response, rpc_route
from dds.transport.server import PeerServer
from dds.wire.codec import encode
from dds.wire.ledger_api import (
    BLOCK_REPLY_BYTES_MAX,
    ENTRIES_REPLY_BYTES_MAX,
    ENTRIES_REQUEST_BYTES_MAX,
    EVENTS_REPLY_BYTES_MAX,
    EVENTS_REQUEST_BYTES_MAX,
    MESSAGE_CHARS_MAX,
    SUBMIT_BYTES_MAX,
    SUBMIT_REPLY_BYTES_MAX,
    BlockReply,
    EntriesReply,
    EntriesRequest,
    EventRow,
    EventsReply,
    EventsRequest,
    Head,
    ProvenEntry,
    SubmitReply,
    SubmitRequest,
    TxOutcome,
    sign_head,
)

READ_THREADS: Final = 2
METRICS_REPLY_BYTES_MAX: Final = 128 * KIB
BODIES_BYTES_MAX: Final = 192 * MIB  # requests and answers in memory, together
STOP_GRACE_S: Final = 8.0  # for requests under way
BAD_NONCE: Final = "bad-nonce"
ANOTHERS: Final = Outcome(0, BAD_NONCE, "another transaction with this nonce, and equal to this one, was there before")
ROW_OVERHEAD_BYTES: Final = 160  # of an event or entry in an answer, beside its own bytes

Params = ParamSpec("Params")
T = TypeVar("T")


class LedgerHost:
    """Serves one engine. `start` starts the engine too, and the stack that it is given stops both."""

    def __init__(self, key: SigningKey, engine: Engine, genesis: Genesis, *, limits: ServerLimits | None = None) -> None:
        self.node_id, self.engine, self.metrics = NodeID(key.public), engine, Registry()
        self._key = key
        self._genesis = encode(genesis)
        self._signed: tuple[int, bytes] = (-1, b"")  # the last head that was signed, and its height
        self._started_s = time.monotonic()
        self._ready = False
        self._pool: Executor
        self.server = PeerServer(
            key,
            network=genesis.network,
            routes=self._routes(),
            limits=limits or ServerLimits(bodies_bytes_max=BODIES_BYTES_MAX),
        )

    @property
    def replica(self) -> Replica:
        return self.engine.replica

    async def start(self, stack: AsyncExitStack, host: str = "127.0.0.1", port: int = 0) -> int:
        """Take part and serve; returns the port.

        Raises:
            ConfigError, StorageError, UnavailableError: the engine or the address cannot be had.
        """
        self._pool = stack.enter_context(ThreadPoolExecutor(READ_THREADS, thread_name_prefix="ledger-read"))
        stack.callback(self.replica.close)
        await self.engine.start()
        stack.push_async_callback(self.engine.stop)
        bound = await self.server.start(host, port)
        stack.push_async_callback(self.server.stop, STOP_GRACE_S)
        self._add_metrics()
        self._ready = True
        return bound

    def _routes(self) -> list[Route]:
        return [
            Route("GET", "/healthz", self._get_health),
            Route("GET", "/metrics", self._get_metrics, max_reply_bytes=METRICS_REPLY_BYTES_MAX),
            Route("GET", "/v1/ledger/head", self._get_head),
            Route("GET", "/v1/ledger/genesis", self._get_genesis, max_reply_bytes=len(self._genesis)),
            Route("GET", "/v1/ledger/blocks/{height}", self._get_block, max_reply_bytes=BLOCK_REPLY_BYTES_MAX),
            rpc_route(
                "/v1/ledger/txs",
                SubmitRequest,
                self._submit,
                max_body_bytes=SUBMIT_BYTES_MAX,
                max_reply_bytes=SUBMIT_REPLY_BYTES_MAX,
            ),
            rpc_route(
                "/v1/ledger/entries",
                EntriesRequest,
                self._entries,
                max_body_bytes=ENTRIES_REQUEST_BYTES_MAX,
                max_reply_bytes=ENTRIES_REPLY_BYTES_MAX,
            ),
            rpc_route(
                "/v1/ledger/events",
                EventsRequest,
                self._events,
                max_body_bytes=EVENTS_REQUEST_BYTES_MAX,
                max_reply_bytes=EVENTS_REPLY_BYTES_MAX,
            ),
        ]

    # ---- transactions

    async def _submit(self, _request: Request, message: SubmitRequest) -> SubmitReply:
        height_before = self.replica.height
        outcomes = await self.engine.submit(message.txs)
        room, replies = SUBMIT_REPLY_BYTES_MAX, []
        for raw, outcome in zip(message.txs, outcomes, strict=True):
            if not message.again and 0 < outcome.height <= height_before:
                outcome = ANOTHERS
            elif message.again and outcome.code == BAD_NONCE:  # perhaps because it has been here before
                known = await self._run(self.replica.outcome_of, raw)
                outcome = known or outcome
            reply = _reply(outcome)
            room -= sum(map(len, reply.events)) + MESSAGE_CHARS_MAX
            replies.append(reply if room > 0 else _reply(outcome, events=False))
            self._txs.add(1, "done" if outcome.ok else "refused")
        return SubmitReply(replies)

    # ---- reading

    async def _get_head(self, _request: Request) -> Response:
        return Response(200, self.signed_head())

    def signed_head(self) -> bytes:
        return self._sign(self.engine.head())

    def _sign(self, head: Head) -> bytes:
        """Once a block, not once an answer: the same head has the same bytes."""
        if self._signed[0] != head.height:
            self._signed = (head.height, sign_head(self._key, head))
        return self._signed[1]

    async def _get_genesis(self, _request: Request) -> Response:
        return Response(200, self._genesis)

    async def _get_block(self, request: Request) -> Response:
        height = _height(request.params["height"])
        record = await self._run(self.replica.block, height)
        if record is None:
            raise NotFoundError(f"there is no block {height}")
        return message_response(BlockReply(height, record.time_ms, record.root, record.txs, record.codes))

    async def _entries(self, _request: Request, message: EntriesRequest) -> EntriesReply:
        proven = await self._run(self.replica.prove_many, message.keys)
        entries: list[ProvenEntry] = []
        room = ENTRIES_REPLY_BYTES_MAX
        for value, proof in proven.entries:
            room -= len(value or b"") + (len(proof.entries) + 4) * ROW_OVERHEAD_BYTES
            if room < 0 and entries:
                break
            entries.append(ProvenEntry(value, proof))
        return EntriesReply(self._sign(proven.head), entries)

    async def _events(self, _request: Request, message: EventsRequest) -> EventsReply:
        stored = await self._run(
            self.replica.events,
            account=message.account,
            node=message.node,
            contract=message.contract,
            segment=message.segment,
            tx_id=message.tx_id,
            after=message.after,
            limit=message.limit,
        )
        rows: list[EventRow] = []
        room = EVENTS_REPLY_BYTES_MAX
        for event in stored:
            room -= len(event.event) + ROW_OVERHEAD_BYTES
            if room < 0 and rows:
                break
            rows.append(_row(event))
        return EventsReply(rows, more=len(rows) == message.limit or len(rows) < len(stored))

    async def _run(self, work: Callable[Params, T], *args: Params.args, **kwargs: Params.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))

    # ---- what the host says of itself

    def health(self) -> dict[str, object]:
        head = self.engine.head()
        return {
            "ready": self._ready,
            "host": id_text(self.node_id),
            "network": head.network,
            "engine": head.engine,
            "version": __version__,
            "height": head.height,
            "epoch": head.epoch,
            "epochs_behind": self.epochs_behind(),
            "root": head.root.hex(),
            "uptime_s": round(time.monotonic() - self._started_s, 1),
        }

    def epochs_behind(self) -> int:
        """Epochs that this machine's clock has begun and the ledger has not. More than one: it stands still."""
        now_ms = time.time_ns() // 1_000_000
        return max(0, self.replica.params.epoch_of(now_ms) - self.replica.epoch)

    async def _get_health(self, _request: Request) -> Response:
        health = self.health()
        return Response(200 if health["ready"] else 503, json.dumps(health).encode(), "application/json")

    async def _get_metrics(self, _request: Request) -> Response:
        return Response(200, self.metrics.render().encode(), METRICS_TYPE)

    def _add_metrics(self) -> None:
        metrics, replica = self.metrics, self.replica
        self._txs = metrics.counter("dds_ledger_txs_total", "Transactions answered, by what became of them.", "result")
        metrics.gauge("dds_ledger_height", "The last durable block.", lambda: replica.height)
        metrics.gauge("dds_ledger_epoch", "The epoch of the last durable block.", lambda: replica.epoch)
        metrics.gauge("dds_ledger_epochs_behind", "Epochs that the clock has begun and the ledger has not.", self.epochs_behind)
        metrics.gauges("dds_ledger_engine", "Which engine orders transactions.", "engine", lambda: {self.engine.name: 1})
        add_request_metrics(metrics, self.server.counters)
        add_process_metrics(metrics)


def _reply(outcome: Outcome, *, events: bool = True) -> TxOutcome:
    shown = tuple(encode(event) for event in outcome.events) if events else ()
    whole = len(shown) == len(outcome.events)
    return TxOutcome(outcome.height, outcome.code, outcome.message[:MESSAGE_CHARS_MAX], shown, whole)


def _row(stored: StoredEvent) -> EventRow:
    return EventRow(stored.seq, stored.height, stored.tx_id, stored.tx_name, stored.event)


def _height(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or str(int(text)) != text:
        raise InputError(f"not a height: {text[:32]!r}")
    return int(text)
