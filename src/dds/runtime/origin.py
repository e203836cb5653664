"""The origin daemon's work: takes puts over from its home's command line, and sees them through.

A job is read once, into a copy of its blocks (storage/block_file.py); from then on nothing depends on the user's files. The
copy is served and announced at once, sent until every fragment has its receipt, however many tries and restarts that takes,
kept for a configured time after that, and dropped.

Decides the order of a job's states, retries, what is bounded. Does not decide how content is sent (put.py), what the disk looks
like (storage/origin_jobs.py) nor who may ask (origin_routes.py). Source: docs/spec/origin.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import msgspec

from dds.content.block import Block
from dds.erasure.geometry import class_geometry
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import CorruptError, DDSError, FormatError, InputError, LimitError, UnavailableError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.runtime.contract_desk import open_desk
from dds.runtime.escrow_claims import EscrowClaims
from dds.runtime.logs import event
from dds.runtime.network import Network, put_origin_record
from dds.runtime.offers import accept
from dds.runtime.put import KeptSource, Put
from dds.runtime.put_origin import RENEW_S
from dds.runtime.results import Progress, PutOptions, PutResult
from dds.runtime.tasks import cancel_all
from dds.storage.block_file import BlockFile, BlockFileWriter
from dds.storage.catalog import Catalog
from dds.storage.home import ClientConfig, Home, NodeConfig
from dds.storage.origin_jobs import JobDirectory, SavedJob
from dds.storage.source import SourceOptions, build_dag
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import PeerClient
from dds.transport.dht import DHTNode
from dds.wire.origin import (
    DONE,
    FAILED,
    NOTES_MAX,
    ORIGIN_JOBS_MAX,
    READING,
    SENDING,
    TEXT_CHARS_MAX,
    WAITING,
    OriginJob,
    OriginPut,
    OriginResult,
)

SENT_AT_ONCE_MAX: Final = 2  # puts under way; each holds a few stripes in memory
RETRY_S_MIN: Final = 5.0
RETRY_S_MAX: Final = 600.0
KEPT_S_MIN: Final = 10  # who waits for the job learns how it ended
FAILED_KEPT_S: Final = 24 * 3600  # how long a failed job is still shown

_log: Final = logging.getLogger("dds.origin")


@dataclass(slots=True)
class Job:
    """A job while the daemon runs; `saved` is what survives it."""

    id: str
    saved: SavedJob
    blocks: BlockFile | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    failure: DDSError | None = None  # of the latest try
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def is_pending(self) -> bool:
        return self.saved.state in (READING, SENDING)

    @property
    def content(self) -> CID:
        assert self.blocks is not None, "known once it is read"
        return self.blocks.content

    @property
    def copy_bytes(self) -> int:
        return 0 if self.blocks is None else self.blocks.size_bytes


@dataclass(frozen=True, slots=True)
class OriginParts:
    """What the node lends its origin."""

    node_key: SigningKey
    dht: DHTNode
    bandwidth: Bandwidth
    addresses: Callable[[], list[str]]


class Origin:
    """Use: `start`, then `submit`, `block` and the reports; `stop` leaves every job as a restart can take it up."""

    def __init__(self, home: Home, config: NodeConfig, parts: OriginParts) -> None:
        self._home, self._config, self._parts = home, config, parts
        self._identity = home.identity()
        self.owner = NodeID(self._identity.public)
        self._directory = JobDirectory(home.node.origin_dir)
        self._jobs: dict[str, Job] = {}
        self._one_reader = asyncio.Semaphore(1)
        self._senders = asyncio.Semaphore(SENT_AT_ONCE_MAX)
        self._claims = EscrowClaims()
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._network: Network | None = None
        self._catalog: Catalog | None = None
        self._stopping = False

    async def start(self) -> None:
        """Take up what an earlier run left.

        Raises:
            StorageError: the jobs cannot be read.
        """
        for job, saved in await asyncio.to_thread(lambda: list(self._directory.load())):
            self._begin(Job(job, saved))

    async def stop(self) -> None:
        self._stopping = True
        await cancel_all(task for job in self._jobs.values() for task in job.tasks)
        await self._stack.aclose()
        for job in self._jobs.values():
            if job.blocks is not None:
                job.blocks.close()

    # ---- what is asked

    async def submit(self, put: OriginPut) -> Job:
        """Take a put over; it is noted durably when this returns.

        Raises:
            InputError: no such class or geometry.
            LimitError: too many jobs.
            StorageError
        """
        class_geometry(put.class_name, put.k, put.m)
        if len(self._jobs) >= ORIGIN_JOBS_MAX:
            raise LimitError(f"the origin has {ORIGIN_JOBS_MAX} jobs already", hint="see: dds node status")
        saved = SavedJob(put, _now_ms())
        job = Job(await asyncio.to_thread(self._directory.create, saved), saved)
        self._begin(job)
        return job

    def job(self, job: str) -> OriginJob | None:
        found = self._jobs.get(job)
        return None if found is None else self._report(found, with_result=True)

    def jobs(self) -> list[OriginJob]:
        return [self._report(job, with_result=False) for job in self._jobs.values()]

    def summary(self) -> dict[str, object]:
        """For /healthz, which anybody may read: counts and sizes only."""
        jobs = self._jobs.values()
        return {
            "jobs": len(jobs),
            "pending": sum(job.is_pending for job in jobs),
            "copy_bytes": self._copy_bytes(),
            "copy_bytes_max": self._config.origin_bytes_max,
        }

    async def block(self, cid: CID) -> bytes | None:
        """A block of any content that is kept here, as it lies on the disk: whoever asked checks it."""
        return await asyncio.to_thread(self._find, cid)

    def _find(self, cid: CID) -> bytes | None:
        for job in reversed(list(self._jobs.values())):
            block = job.blocks.read(cid) if job.blocks is not None else None
            if block is not None:
                return block
        return None

    def _copy_bytes(self) -> int:
        return sum(job.copy_bytes for job in self._jobs.values())

    def _report(self, job: Job, *, with_result: bool) -> OriginJob:
        saved, failure = job.saved, job.failure
        return OriginJob(
            job=job.id,
            state=WAITING if saved.state == SENDING and failure is not None else saved.state,
            name=_source(saved.put).name,
            content=b"" if job.blocks is None else job.blocks.content,
            done_bytes=job.done_bytes,
            content_bytes=job.total_bytes if job.blocks is None else job.blocks.built.content_bytes,
            copy_bytes=job.copy_bytes,
            is_enough=saved.is_enough,
            created_ms=saved.created_ms,
            kept_until_ms=saved.ended_ms + self._kept_ms(saved) if saved.ended_ms else 0,
            error_code=saved.error_code if failure is None else failure.code,
            error=saved.error if failure is None else failure.message[:TEXT_CHARS_MAX],
            hint=saved.hint if failure is None else (failure.hint or "")[:TEXT_CHARS_MAX],
            result=saved.result if with_result else None,
        )

    def _kept_ms(self, saved: SavedJob) -> int:
        return 1000 * (FAILED_KEPT_S if saved.state == FAILED else max(self._config.origin_keep_s, KEPT_S_MIN))

    # ---- a job's life

    def _begin(self, job: Job) -> None:
        self._jobs[job.id] = job
        job.tasks.append(asyncio.create_task(self._live(job)))

    async def _live(self, job: Job) -> None:
        try:
            await self._work(job)
        except DDSError as error:
            await self._fail(job, error)
        except Exception as error:  # a bug of ours: the job stays as it is for the next start, the others go on
            event(_log, logging.ERROR, "job stopped", job=job.id, error=error)
            return
        await asyncio.sleep(max(0, job.saved.ended_ms + self._kept_ms(job.saved) - _now_ms()) / 1000)
        await self._drop(job)

    async def _work(self, job: Job) -> None:
        """Do what is left to do.

        Raises:
            DDSError: it can never be done.
        """
        if job.saved.state == FAILED:
            return
        if job.saved.state != READING or self._directory.has_copy(job.id):
            job.blocks = await asyncio.to_thread(BlockFile, self._directory.path(job.id))
        else:
            async with self._one_reader:
                await self._read(job)
        if job.saved.state == READING:
            await self._save(job, state=SENDING)
            event(_log, logging.INFO, "job read", job=job.id, content=cid_text(job.content), bytes=job.copy_bytes)
        job.tasks.append(asyncio.create_task(self._announce(job)))
        if job.saved.state == SENDING:
            await self._send_until_done(job)

    async def _save(self, job: Job, **changes: Any) -> None:
        job.saved = msgspec.structs.replace(job.saved, **changes)
        async with job.saving:
            await asyncio.to_thread(self._directory.save, job.id, job.saved)

    async def _read(self, job: Job) -> None:
        """Copy the source. The thread's end is always awaited; a stop shows at its next block."""
        put = job.saved.put
        options = SourceOptions(put.chunker, put.hidden, put.follow_symlinks)

        def read() -> BlockFile:
            writer = BlockFileWriter(self._directory.path(job.id), self._config.origin_bytes_max - self._copy_bytes())

            def sink(block: Block, position: int) -> None:
                if self._stopping:
                    raise UnavailableError("the origin is stopping")
                writer.add(block, position)
                job.done_bytes += len(block.data)

            try:
                return writer.seal(build_dag(_source(put), options, sink))
            finally:
                writer.close()

        reading = asyncio.ensure_future(asyncio.to_thread(read))
        try:
            job.blocks = await asyncio.shield(reading)
        except asyncio.CancelledError:
            await asyncio.gather(reading, return_exceptions=True)
            raise

    async def _send_until_done(self, job: Job) -> None:
        """Try until all receipts are there.

        Raises:
            InputError, CorruptError, FormatError: trying again is of no use.
        """
        pause_s = RETRY_S_MIN
        while True:
            try:
                async with self._senders:
                    result = await self._send(job)
            except (InputError, CorruptError, FormatError):
                raise
            except DDSError as error:
                job.failure = error
                event(_log, logging.WARNING, "job waits", job=job.id, again_in_s=pause_s, error=error)
            else:
                job.failure = None
                await self._save(job, state=DONE, is_enough=True, ended_ms=_now_ms(), result=result)
                event(_log, logging.INFO, "job done", job=job.id, content=cid_text(job.content))
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S_MAX)

    async def _send(self, job: Job) -> OriginResult:
        assert job.blocks is not None
        network, catalog = await self._open()
        await network.refresh()
        asked = job.saved.put
        options = _options(asked)
        geometry = class_geometry(asked.class_name, asked.k, asked.m)

        def on_progress(progress: Progress) -> None:
            job.done_bytes = progress.done_bytes

        def on_enough(result: PutResult, holders: list[NodeID]) -> None:
            told = _result_message(result, geometry.m - geometry.m // 3)
            job.saved = msgspec.structs.replace(job.saved, is_enough=True, result=told)
            job.tasks.append(asyncio.create_task(self._is_enough(job, network, holders)))

        ledger = self._home.client_config().ledger if self._home.config_file.exists() else ""
        desk = open_desk(network.ledger(ledger), self._identity, options, accept, self._claims) if ledger else None
        put = Put(network, catalog, self._home.spool_dir, options, on_progress, serve=False, on_enough=on_enough, desk=desk)
        key = tagged_hash(b"dds/origin-job/v1", self._identity.public, job.id.encode())
        source = KeptSource(job.blocks, _source(asked).name, key)
        return _result_message(await put.run(source, None, job.copy_bytes), geometry.m)

    async def _is_enough(self, job: Job, network: Network, holders: list[NodeID]) -> None:
        """The content can be read without us: say where, and note it. The receipts are durable where they were given."""
        await network.announce(job.content, holders)
        await self._save(job)

    async def _open(self) -> tuple[Network, Catalog]:
        """This home's session, opened for the first job that sends.

        Raises:
            UnavailableError: no bootstrap node answers. It is tried again with the next try.
        """
        async with self._opening:
            if self._catalog is None:
                self._catalog = await asyncio.to_thread(Catalog, self._home.catalog_file)
                self._stack.callback(self._catalog.close)
            if self._network is None:
                self._network = await self._connect()
            return self._network, self._catalog

    async def _connect(self) -> Network:
        config = self._config
        async with AsyncExitStack() as opened:
            client = PeerClient(self._identity, network=config.network, bandwidth=self._parts.bandwidth)
            await opened.enter_async_context(client)
            known = ClientConfig(config.network, config.bootstrap, config.dht_bootstrap)
            network = Network(self._identity, known, client, self._parts.dht)
            await network.start()
            opened.push_async_callback(network.stop)
            self._stack.push_async_callback(opened.pop_all().aclose)
            return network

    async def _announce(self, job: Job) -> None:
        parts = self._parts
        while True:
            await put_origin_record(parts.dht, parts.node_key, self._config.network, job.content, parts.addresses())
            await asyncio.sleep(RENEW_S)

    async def _fail(self, job: Job, error: DDSError) -> None:
        event(_log, logging.WARNING, "job failed", job=job.id, error=error)
        text, hint = error.message[:TEXT_CHARS_MAX], (error.hint or "")[:TEXT_CHARS_MAX]
        await cancel_all(task for task in job.tasks if task is not asyncio.current_task())
        await self._save(job, state=FAILED, ended_ms=_now_ms(), error_code=error.code, error=text, hint=hint)
        if job.blocks is not None:
            await asyncio.to_thread(job.blocks.close)
            job.blocks = None
        await asyncio.to_thread(self._directory.remove_copy, job.id)

    async def _drop(self, job: Job) -> None:
        """Serve it no more; what the DHT says of it is not renewed."""
        self._jobs.pop(job.id, None)
        await cancel_all(task for task in job.tasks if task is not asyncio.current_task())
        if job.blocks is not None:
            await asyncio.to_thread(job.blocks.close)
        await asyncio.to_thread(self._directory.remove, job.id)
        event(_log, logging.INFO, "job dropped", job=job.id, state=job.saved.state)


def _source(put: OriginPut) -> Path:
    return Path(put.path.decode("utf-8", "surrogateescape"))


def _options(put: OriginPut) -> PutOptions:
    return PutOptions(
        put.class_name,
        put.k,
        put.m,
        put.chunker,
        put.hidden,
        put.follow_symlinks,
        ack="fast",
        dedup=put.dedup,
        term=put.term,
        price_max=put.price_max,
        archive_after_days=put.archive_after_days,
    )


def _result_message(result: PutResult, losses_survived: int) -> OriginResult:
    values = {each.name: getattr(result, each.name) for each in fields(result)}
    notes = [note[:TEXT_CHARS_MAX] for note in result.notes[:NOTES_MAX]]
    return OriginResult(**{**values, "notes": notes, "losses_survived": losses_survived})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
