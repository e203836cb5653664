"""What a home's command line and its origin daemon say to each other (docs/spec/origin.md).

    POST /v1/origin/jobs         OriginPut -> OriginJob     take a put over
    GET  /v1/origin/jobs         OriginJobs
    GET  /v1/origin/jobs/{job}   OriginJob

Only the home's own identity key may ask, and only from the same machine.
"""

from __future__ import annotations

from typing import Final

from dds.primitives.units import KIB
from dds.wire.codec import Message

PATH_BYTES_MAX: Final = 4096
ORIGIN_PUT_BYTES_MAX: Final = 8 * KIB
ORIGIN_JOB_BYTES_MAX: Final = 64 * KIB
ORIGIN_JOBS_MAX: Final = 256  # of one daemon
ORIGIN_JOBS_BYTES_MAX: Final = 256 * KIB
NOTES_MAX: Final = 32
TEXT_CHARS_MAX: Final = 512

READING: Final = "reading"  # the source is being copied
SENDING: Final = "sending"
WAITING: Final = "waiting"  # a try has failed, the next one comes
DONE: Final = "done"  # all receipts are there; the copy is kept for a while
FAILED: Final = "failed"  # for good: the source, or what was asked


class OriginPut(Message, frozen=True):
    path: bytes  # absolute, on this machine
    class_name: str
    k: int | None
    m: int | None
    chunker: str
    hidden: bool
    follow_symlinks: bool
    dedup: str = "network"
    term: str = ""
    price_max: int | None = None
    archive_after_days: int | None = None


class Payment(Message, frozen=True):
    """What a put was charged, in base units."""

    contract: bytes
    price: int  # per MiB-epoch
    term_epochs: int
    rent: int
    fee: int
    reserve: int  # for repairs; what is not needed comes back, as rent that nobody earned does
    segments: int  # registered
    sponsored: int  # stored before, and paid for by this put too

    @property
    def total(self) -> int:
        return self.rent + self.fee + self.reserve


class OriginResult(Message, frozen=True):
    """What a put came to, so far; the fields of the client's PutResult."""

    content: bytes
    kind: str
    files: int
    content_bytes: int
    dag_bytes: int
    unique_bytes: int
    stored_bytes: int
    encoded_bytes: int
    sent_bytes: int
    reused_bytes: int
    segments: int
    nodes: int
    regions: int
    operators: int
    seconds: float
    notes: list[str]
    losses_survived: int | None
    reused_from_others_bytes: int = 0
    payment: Payment | None = None
    class_name: str = ""
    reused_stored_bytes: int = 0


class OriginJob(Message, frozen=True):
    job: str
    state: str
    name: str  # the source's
    content: bytes  # ContentID; empty until it is known
    done_bytes: int
    content_bytes: int
    copy_bytes: int  # of the daemon's own copy
    is_enough: bool  # k + ceil(2m/3) receipts of every segment are there
    created_ms: int
    kept_until_ms: int  # 0: not known yet
    error_code: str  # of what failed last, or empty
    error: str
    hint: str
    result: OriginResult | None  # in the answer about one job, once it is enough


class OriginJobs(Message, frozen=True):
    jobs: list[OriginJob]
