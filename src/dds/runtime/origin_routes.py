"""The origin's interface for the home it belongs to: hand a put over, see how it goes. Source: docs/spec/origin.md.

Decides who may ask: the holder of the home's identity key, from this machine. A job names a path that the daemon reads with its
own rights, so nobody else is let in, whatever key he has.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable

from dds.primitives.errors import InputError, NotFoundError
from dds.runtime.origin import Origin
from dds.transport.routes import Request, Response, Route, message_response, refusal
from dds.wire.codec import decode
from dds.wire.origin import (
    ORIGIN_JOB_BYTES_MAX,
    ORIGIN_JOBS_BYTES_MAX,
    ORIGIN_PUT_BYTES_MAX,
    PATH_BYTES_MAX,
    OriginJob,
    OriginJobs,
    OriginPut,
)

Handler = Callable[[Request], Awaitable[Response]]


class OriginRoutes:
    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def routes(self) -> list[Route]:
        jobs, job = "/v1/origin/jobs", "/v1/origin/jobs/{job}"
        one, many = ORIGIN_JOB_BYTES_MAX, ORIGIN_JOBS_BYTES_MAX
        return [
            Route("POST", jobs, self._for_owner(self._post_job), ORIGIN_PUT_BYTES_MAX, one, peer_required=True),
            Route("GET", jobs, self._for_owner(self._get_jobs), max_reply_bytes=many, peer_required=True),
            Route("GET", job, self._for_owner(self._get_job), max_reply_bytes=one, peer_required=True),
        ]

    def _for_owner(self, handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            if request.peer != self._origin.owner or not _is_loopback(request.address):
                return refusal(403, "not-owner", "only the home that this origin belongs to may ask, on the same machine")
            return await handler(request)

        return checked

    async def _post_job(self, request: Request) -> Response:
        put = decode(request.body, OriginPut, max_bytes=ORIGIN_PUT_BYTES_MAX)
        if not os.path.isabs(put.path) or len(put.path) > PATH_BYTES_MAX or b"\0" in put.path:
            raise InputError("a put that is handed over names an absolute path")
        job = await self._origin.submit(put)
        return message_response(self._known(job.id), 201)

    async def _get_jobs(self, _request: Request) -> Response:
        return message_response(OriginJobs(self._origin.jobs()))

    async def _get_job(self, request: Request) -> Response:
        return message_response(self._known(request.params["job"]))

    def _known(self, job: str) -> OriginJob:
        report = self._origin.job(job)
        if report is None:
            raise NotFoundError("there is no such job here", hint="it may have been done and dropped: dds node status")
        return report


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
