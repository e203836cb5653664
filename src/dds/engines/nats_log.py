"""A NATS JetStream stream as a log: entries numbered from 1, appended behind a fence, read in order, on a majority of servers.

Decides how the stream is set up, what an append's answer means, and how reading goes on when servers vanish. Knows no ledger:
entries are bytes. An append that nobody answered may still be in; only reading tells (nats.py does).

    stream     dds-ledger-NETWORK, one subject, file storage, nothing ever expires, is purged or deleted
    fence      Nats-Expected-Last-Sequence: an append after anything but the last entry is refused
    retries    Nats-Msg-Id, the entry's hash: the same bytes again are not stored again

Source: docs/operate/ledger-nats.md; NATS "JetStream wire API" (docs.nats.io), ADR 0018.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError, NotFoundError

from dds.primitives.errors import ConfigError, CorruptError, UnavailableError
from dds.primitives.hashing import sha256
from dds.wire.ledger_block import ENTRY_BYTES_MAX

SCHEME: Final = "nats://"
REPLICAS: Final = 3
OPEN_S: Final = 30.0  # a cluster that has just been started elects its leaders meanwhile
REQUEST_S: Final = 2.0
RETRY_S: Final = 0.2  # between attempts while no server leads
IDLE_S: Final = 1.0  # without an entry: ask whether the reader is still known to the servers
BATCH_MAX: Final = 64  # entries in memory while catching up
READER_IDLE_S: Final = 30.0  # then the servers forget a reader that does not come back
DUPLICATES_S: Final = 120.0
HEADER_BYTES: Final = 1024  # that an append's headers may take of what a server accepts
WRONG_LAST_SEQUENCE: Final = frozenset((10071, 10164))  # the server's codes for a fence that does not hold
NO_MESSAGE: Final = 10037
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST: Final = re.compile(r"(?:[^@,]+@)?[^@:,/\s]+:\d{1,5}")
_FAILURES: Final = (NatsError, OSError, TimeoutError, json.JSONDecodeError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    sequence: int
    payload: bytes
    stored_ms: int  # the log's own time of it, the same for every reader


def parse_servers(address: str) -> tuple[str, ...]:
    """`nats://host:port,host:port` -> the servers' own addresses; `user:password@` may stand before each host.

    Raises:
        ConfigError: it has no such form.
    """
    hosts = address.removeprefix(SCHEME).split(",")
    if not address.startswith(SCHEME) or not all(_HOST.fullmatch(host) for host in hosts):
        raise ConfigError(f"{address!r} names no NATS servers", hint="nats://host:port,host:port,host:port")
    return tuple(SCHEME + host for host in hosts)


class NatsLog:
    """One host's connection to the log. `last` is the highest sequence that this host has heard of."""

    def __init__(self, servers: Sequence[str], network: str, *, replicas: int = REPLICAS) -> None:
        """`servers` are addresses as `parse_servers` takes them.

        Raises:
            ConfigError: an address of no such form, or a network that cannot name a stream.
        """
        if _NAME.fullmatch(network) is None:
            raise ConfigError(f"network {network!r} cannot name a NATS stream", hint="letters, digits, '-' and '_'")
        self.stream = f"dds-ledger-{network}"
        self.subject = f"dds.ledger.{network}"
        self.last = 0
        self.trouble = ""  # what keeps the log from going on, for people
        self._servers = [server for address in servers for server in parse_servers(address)]
        self._replicas = replicas
        self._client: Client | None = None
        self._context: JetStreamContext | None = None

    # -- the connection and the stream --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and have the stream, made now if this is the first host.

        Raises:
            ConfigError: the stream is there with other settings, or the servers take no entry of the size needed.
            UnavailableError: no server, or no majority, within OPEN_S.
        """
        try:
            async with asyncio.timeout(OPEN_S):
                self._client = await self._connect()
                self._context = self._client.jetstream(timeout=REQUEST_S)
                info = await self._have_stream()
        except TimeoutError:
            await self.close()
            raise UnavailableError(f"no NATS majority for the ledger's log in {OPEN_S:.0f} s: {self.trouble}") from None
        except BaseException:
            await self.close()
            raise
        self.last = info.state.last_seq

    async def close(self) -> None:
        client, self._client, self._context = self._client, None, None
        if client is not None:
            with contextlib.suppress(*_FAILURES):
                await client.close()

    async def _connect(self) -> Client:
        while True:
            try:
                client = await nats.connect(
                    self._servers,
                    name=self.stream,
                    error_cb=self._on_error,
                    connect_timeout=2,
                    reconnect_time_wait=0,
                    max_reconnect_attempts=-1,
                )
            except _FAILURES as error:
                self.trouble = f"no server can be reached: {error}"
                await asyncio.sleep(RETRY_S)
                continue
            if client.max_payload < ENTRY_BYTES_MAX + HEADER_BYTES:
                taken = client.max_payload
                await client.close()
                raise ConfigError(f"the NATS servers take messages of {taken} bytes, and blocks have up to {ENTRY_BYTES_MAX}")
            return client

    async def _have_stream(self) -> StreamInfo:
        wanted = self._wanted()
        while True:
            try:
                try:
                    info = await self._jetstream.stream_info(self.stream)
                except NotFoundError:
                    info = await self._jetstream.add_stream(wanted)
                break
            except _FAILURES as error:
                self.trouble = str(error)
                await asyncio.sleep(RETRY_S)
        for name in ("subjects", "storage", "num_replicas", "retention", "discard", "deny_delete", "deny_purge", "max_age"):
            found, expected = getattr(info.config, name), getattr(wanted, name)
            if found != expected:
                raise ConfigError(f"stream {self.stream} has {name} = {found!r}, and the ledger needs {expected!r}")
        self.trouble = ""
        return info

    def _wanted(self) -> StreamConfig:
        return StreamConfig(
            name=self.stream,
            subjects=[self.subject],
            storage=StorageType.FILE,
            num_replicas=self._replicas,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,  # a full stream refuses: it forgets nothing
            max_age=0,
            max_msg_size=ENTRY_BYTES_MAX + HEADER_BYTES,
            duplicate_window=DUPLICATES_S,
            deny_delete=True,
            deny_purge=True,
        )

    @property
    def _jetstream(self) -> JetStreamContext:
        if self._context is None:
            raise UnavailableError("the ledger's log is closed")
        return self._context

    async def _on_error(self, error: Exception) -> None:
        """The client tells of lost connections here and reconnects by itself."""
        logger.debug("nats: %s", error)

    # -- appending ----------------------------------------------------------------------------------------------------------

    async def append(self, payload: bytes, *, after: int) -> bool:
        """Whether `payload` is entry `after + 1` now, on a majority's disks; False: the fence refused it.

        Raises:
            UnavailableError: no answer. It may be in, or come in yet; the same call again is safe.
        """
        headers = {
            "Nats-Expected-Stream": self.stream,
            "Nats-Expected-Last-Sequence": str(after),
            "Nats-Msg-Id": sha256(payload).hex(),
        }
        try:
            ack = await self._jetstream.publish(self.subject, payload, timeout=REQUEST_S, headers=headers)
        except APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                self.last = max(self.last, _named_sequence(error))
                return False
            raise UnavailableError(f"the log took no entry: {error}") from None
        except _FAILURES as error:
            raise UnavailableError(f"the log did not answer: {error}") from None
        self.last = max(self.last, ack.seq)
        return ack.seq == after + 1

    # -- reading ------------------------------------------------------------------------------------------------------------

    async def entries(self, after: int) -> AsyncGenerator[Entry, None]:
        """Every entry after `after`, in order, without end, over any failure that leaves a majority.

        Raises:
            CorruptError: an entry is gone for good.
        """
        at = after
        while True:
            try:
                async with self._reader(at) as reader:
                    async for entry in self._read(reader, at):
                        at = entry.sequence
                        self.last = max(self.last, at)
                        self.trouble = ""
                        yield entry
            except (*_FAILURES, UnavailableError) as error:
                if self.trouble != str(error):
                    logger.warning("the ledger's log after entry %d: %s", at, error)
                self.trouble = str(error)
            await asyncio.sleep(RETRY_S)

    @contextlib.asynccontextmanager
    async def _reader(self, after: int) -> AsyncIterator[JetStreamContext.PullSubscription]:
        info = await self._jetstream.stream_info(self.stream)
        if info.state.last_seq < after:  # a leader that is catching up itself; or another stream of this name
            raise UnavailableError(f"the log ends at {info.state.last_seq}, and this ledger has applied {after}")
        self.last = info.state.last_seq  # what a leader named that died before its majority agreed is forgotten
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=READER_IDLE_S,
            num_replicas=1,
            mem_storage=True,
        )
        reader = await self._jetstream.pull_subscribe(self.subject, stream=self.stream, config=config)
        try:
            yield reader
        finally:
            with contextlib.suppress(*_FAILURES):
                await reader.unsubscribe()

    async def _read(self, reader: JetStreamContext.PullSubscription, at: int) -> AsyncIterator[Entry]:
        """What the reader gives, as long as nothing is missing; returns when another reader is needed."""
        while True:
            try:
                messages = await reader.fetch(max(1, min(self.last - at, BATCH_MAX)), timeout=IDLE_S)
            except TimeoutError:
                if self.last > at or not await self._is_known(reader):
                    return
                continue
            for message in messages:
                entry = _entry(message)
                if entry.sequence > at + 1:
                    await self._confirm(at + 1)
                    return
                if entry.sequence == at + 1:
                    at += 1
                    yield entry

    @staticmethod
    async def _is_known(reader: JetStreamContext.PullSubscription) -> bool:
        """Whether the servers still know this reader: it dies with the one server that kept it."""
        with contextlib.suppress(*_FAILURES):
            await reader.consumer_info()
            return True
        return False

    async def _confirm(self, sequence: int) -> None:
        """
        Raises:
            CorruptError: the log itself lacks the entry, not only what the reader was sent.
        """
        try:
            await self._jetstream.get_msg(self.stream, sequence)
        except NotFoundError as error:
            if error.err_code == NO_MESSAGE:
                raise CorruptError(f"entry {sequence} of the ledger's log {self.stream} is gone") from None
            raise


def _entry(message: Msg) -> Entry:
    about = message.metadata
    stored = about.timestamp.replace(tzinfo=UTC) if about.timestamp.tzinfo is None else about.timestamp
    return Entry(about.sequence.stream, message.data, (stored - _EPOCH) // timedelta(milliseconds=1))


def _named_sequence(error: APIError) -> int:
    """The last sequence as the refusal names it ("wrong last sequence: 17"); 0 where it does not."""
    found = re.search(r"\d+\s*$", error.description or "")
    return int(found.group()) if found else 0
