"""What the client's operations take and give: plain data that the command line prints and programs read. Sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from dds.primitives.cid import CID
from dds.primitives.ids import NodeID, PublisherID, SegmentID
from dds.wire.origin import Payment as Payment


@dataclass(frozen=True, slots=True)
class PutOptions:
    class_name: str = "auto"  # by the class policy; whatever else is named here always wins
    k: int | None = None  # with class "custom"
    m: int | None = None
    chunker: str = "fixed"
    hidden: bool = False
    follow_symlinks: bool = False
    ack: str = "all"  # "fast" returns at k + ceil(2m/3) receipts and needs a running origin daemon
    dedup: str = "network"  # what need not be sent: "network" asks for it there, "home" knows this home's puts only, "off" none
    term: str = ""  # how long it is paid for, where the network is paid: "30d", or a number of epochs; empty: 720 epochs
    price_max: int | None = None  # per MiB-epoch; None: twice the price that was quoted
    archive_after_days: int | None = None  # unread, then 'dds tier' archives it; from the policy's rule; None: no rule says so


@dataclass(frozen=True, slots=True)
class Progress:
    phase: str  # "reading", "sending", "committing", "fetching", ...
    done_bytes: int
    total_bytes: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PutResult:
    content: CID
    kind: str
    files: int
    content_bytes: int
    dag_bytes: int
    unique_bytes: int
    stored_bytes: int  # the distinct blocks after compression
    encoded_bytes: int  # fragments kept by nodes for what was new, parity included
    sent_bytes: int  # bodies sent this time; less than encoded when a broken put was resumed
    reused_bytes: int  # raw bytes that the network already had
    segments: int
    nodes: int
    regions: int
    operators: int
    seconds: float
    reused_from_others_bytes: int = 0  # of reused_bytes: encoded by other publishers, read back and checked
    notes: list[str] = field(default_factory=list)  # bent rules, replaced nodes
    payment: Payment | None = None  # where the network is paid
    losses_survived: int | None = None  # with ack "fast": how many nodes of any segment may go at this moment
    class_name: str = ""  # what "auto" came to, too
    reused_stored_bytes: int = 0  # of reused_bytes: what they take where they lie, after compression


@dataclass(frozen=True, slots=True)
class Culprit:
    """A node whose bytes failed their hash."""

    node: NodeID
    reason: str


@dataclass(frozen=True, slots=True)
class GetResult:
    content: CID
    kind: str
    files: int
    content_bytes: int  # written to the output
    moved_bytes: int  # received from peers, all of it
    seconds: float
    decoded_stripes: int
    culprits: list[Culprit] = field(default_factory=list)
    edge_bytes: int = 0  # of blocks that came from edge caches
    paid: int = 0  # base units promised to nodes for reading, in this session


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a directory listing."""

    name: str
    kind: str
    size: int  # of the file's bytes; a directory's Tsize
    content: CID


@dataclass(frozen=True, slots=True)
class HolderStat:
    index: int
    node: NodeID
    region: str
    operator: str
    live: bool


@dataclass(frozen=True, slots=True)
class SegmentStat:
    segment: SegmentID
    k: int
    n: int
    live: int
    stripes: int
    encoded_bytes: int
    holders: list[HolderStat]
    attributed_bytes: int = 0  # of encoded_bytes, by this content's share of each stripe
    sponsors: int | None = None  # contracts that pay for it; None: not known
    shared_bytes: int | None = None  # of attributed_bytes, in stripes that more than one contract pays for; None: not known


@dataclass(frozen=True, slots=True)
class ContentStat:
    content: CID
    kind: str
    class_name: str
    publisher: PublisherID
    chunker: str
    content_bytes: int
    dag_bytes: int
    unique_bytes: int  # of the distinct blocks
    stored_bytes: int  # of them, after compression
    encoded_bytes: int  # fragments of all its segments, whole ones
    dedup_saved_bytes: int  # dag_bytes - unique_bytes
    compression_saved_bytes: int  # unique_bytes - stored_bytes
    nodes: int
    regions: int
    operators: int
    losses_survived: int  # how many more of the worst segment's nodes may go
    segments: list[SegmentStat] = field(default_factory=list)
    is_measured: bool = True  # sizes are from the segments' indexes; else, as these cannot be read, from the manifest
    attributed_bytes: int = 0  # of encoded_bytes: this content's share of every stripe, the manifest's sections included
    stored_again_bytes: int = 0  # of blocks that lie in a second segment too
    shared_bytes: int | None = None  # of attributed_bytes, in stripes that more than one contract pays for; None: not known
    findings: list[str] = field(default_factory=list)  # where the manifest says otherwise


@dataclass(frozen=True, slots=True)
class HomeStat:
    """Totals over the contents that were put from a home; a block of several of them counts once."""

    contents: int
    counted: int  # contents that could be measured
    logical_bytes: int  # all blocks of all contents, repeats counted
    unique_bytes: int
    stored_bytes: int
    attributed_bytes: int
    dedup_saved_bytes: int  # logical_bytes - unique_bytes
    compression_saved_bytes: int  # unique_bytes - stored_bytes
    stored_again_bytes: int
    segments: int
    findings: list[str] = field(default_factory=list)
