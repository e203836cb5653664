"""Handing a put over to the home's own origin daemon, and waiting until it is safe to go: `dds put --ack fast`.

Decides how the daemon is found (state.json) and what its reports mean to a caller. Source: docs/spec/origin.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from dds.primitives.cid import CID
from dds.primitives.errors import (
    CorruptError,
    DDSError,
    DiskFullError,
    FormatError,
    InputError,
    LimitError,
    NotEnoughNodes,
    PeerProtocolError,
    PeerUnreachable,
    SourceChangedError,
    StorageError,
    UnavailableError,
)
from dds.primitives.ids import NodeID, id_text, parse_id
from dds.runtime.results import Progress, PutOptions, PutResult
from dds.storage.home import Home, parse_host_port
from dds.transport.client import PeerClient
from dds.wire.codec import decode
from dds.wire.origin import (
    DONE,
    FAILED,
    ORIGIN_JOB_BYTES_MAX,
    ORIGIN_JOBS_BYTES_MAX,
    READING,
    WAITING,
    OriginJob,
    OriginJobs,
    OriginPut,
)

POLL_S: Final = 0.1
REQUEST_TIMEOUT_S: Final = 10.0
_JOBS: Final = "/v1/origin/jobs"
_KINDS: Final = {
    kind.code: kind for kind in (InputError, SourceChangedError, LimitError, DiskFullError, StorageError, CorruptError)
}


class OriginClient:
    """This home's daemon, asked with this home's identity."""

    def __init__(self, home: Home, client: PeerClient) -> None:
        """
        Raises:
            InputError: this home runs no origin daemon.
        """
        state = home.node.read_state()
        if state is None or "origin" not in state.roles:
            raise _no_daemon()
        self._client = client
        self._node = NodeID(parse_id(state.id))
        client.learn(self._node, [parse_host_port(state.address)])

    async def put(self, source: Path | BinaryIO, options: PutOptions, progress: Callable[[Progress], None]) -> PutResult:
        """Hand `source` over and wait until every segment has k + ceil(2m/3) receipts; the daemon finishes the rest.

        Raises:
            InputError: not a path, no daemon, or what the daemon found wrong with the source.
            SourceChangedError, LimitError, StorageError: the daemon could not copy the source.
            NotEnoughNodes: its first try failed; it goes on trying.
            UnavailableError: it went away.
        """
        if not isinstance(source, Path):
            raise InputError("--ack fast needs a file or directory", hint="write standard input to a file first")
        path = os.fsencode(source.absolute())
        put = OriginPut(
            path,
            options.class_name,
            options.k,
            options.m,
            options.chunker,
            options.hidden,
            options.follow_symlinks,
            options.dedup,
            options.term,
            options.price_max,
            options.archive_after_days,
        )
        try:
            raw = await self._client.post(
                self._node,
                _JOBS,
                msgspec.msgpack.encode(put),
                max_bytes=ORIGIN_JOB_BYTES_MAX,
                timeout_s=REQUEST_TIMEOUT_S,
            )
        except PeerUnreachable:  # a daemon that was killed leaves its state.json
            raise _no_daemon() from None
        job = self._decoded(raw)
        while not (job.is_enough and job.result is not None):
            self._check(job)
            progress(Progress("copying" if job.state == READING else "sending", job.done_bytes, job.content_bytes or None))
            await asyncio.sleep(POLL_S)
            job = await self._ask(job.job)
        return _put_result(job)

    async def jobs(self) -> list[OriginJob]:
        """What the daemon has.

        Raises:
            RemoteError
        """
        raw = await self._client.get(self._node, _JOBS, max_bytes=ORIGIN_JOBS_BYTES_MAX, timeout_s=REQUEST_TIMEOUT_S)
        return decode(raw, OriginJobs, max_bytes=ORIGIN_JOBS_BYTES_MAX).jobs

    async def _ask(self, job: str) -> OriginJob:
        path = f"{_JOBS}/{job}"
        try:
            raw = await self._client.get(self._node, path, max_bytes=ORIGIN_JOB_BYTES_MAX, timeout_s=REQUEST_TIMEOUT_S)
        except PeerUnreachable:
            raise UnavailableError(
                "the origin daemon went away", hint="when it runs again it goes on by itself: dds node run, dds node status"
            ) from None
        return self._decoded(raw)

    def _decoded(self, raw: bytes) -> OriginJob:
        try:
            return decode(raw, OriginJob, max_bytes=ORIGIN_JOB_BYTES_MAX)
        except FormatError as error:
            raise PeerProtocolError(error.message, peer=id_text(self._node)) from None

    def _check(self, job: OriginJob) -> None:
        """
        Raises:
            DDSError: there is nothing to wait for.
        """
        if job.state == FAILED:
            kind: type[DDSError] = _KINDS.get(job.error_code, UnavailableError)
            raise kind(job.error, hint=job.hint or None)
        if job.state == WAITING:
            raise NotEnoughNodes(
                job.error, hint="the origin daemon has its copy, serves it and goes on trying: dds node status", job=job.job
            )


def _no_daemon() -> InputError:
    return InputError(
        "--ack fast needs a running origin daemon in this home, and none is running",
        hint="leave --ack out, or start one: dds node init --role origin, dds node run",
    )


def _put_result(job: OriginJob) -> PutResult:
    assert job.result is not None
    values = {name: getattr(job.result, name) for name in job.result.__struct_fields__}
    rest = "all receipts are there" if job.state == DONE else "the origin daemon finishes the rest"
    note = f"every segment survives the loss of any {job.result.losses_survived} of its nodes now; {rest}"
    return PutResult(**{**values, "content": CID(job.result.content), "notes": [note, *job.result.notes]})
