"""Reading content DAGs without I/O: which blocks are needed, in which order, and what they add up to.

`DagReader` walks a file, a byte range of one, a directory's list of entries or a whole tree. The host fetches what it
requests, many at a time and in any order, and gets events strictly in order. Memory is bounded by a window of bytes, however
big the content: a block is only requested when what is under way or waiting to be taken leaves room for it, and plans are
unfolded a link at a time. Blocks handed in must already match their CIDs; everything else about them is distrusted.

    while not reader.done:
        for request in reader.requests(): start fetching request.ref
        for event in reader.events(): use it
        reader.receive(request, block) for each that arrived

Paths are found by `resolve`. What a block means: nodes.py; what follows from it: expand.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from dds.content.block import Ref, child_refs
from dds.content.events import Data, Event
from dds.content.expand import Child, Part, Role, Whole, expand
from dds.content.hamt import HASH_BITS, name_hash
from dds.content.names import name_text
from dds.content.nodes import DirectoryNode, FileNode, ShardNode, bucket_of, parse_node
from dds.primitives.cid import RAW, cid_of, codec_of
from dds.primitives.errors import FormatError, InputError, LimitError
from dds.primitives.units import BLOCK_BYTES_MAX, MIB

WINDOW_BYTES: Final = 16 * MIB
WINDOW_REQUESTS: Final = 256
OPEN_NODE_BYTES_MAX: Final = 32 * MIB  # encoded directories and file nodes that are being walked through at one time
ENTRIES_MAX: Final = 50_000_000  # a small DAG can spell out a tree without end by naming one directory many times
EMPTY_BLOCK: Final = cid_of(b"", RAW)  # known without asking anybody


@dataclass(frozen=True, slots=True)
class Window:
    """How far to read ahead. `bytes_max` bounds blocks under way and data not yet taken, `requests_max` their number."""

    bytes_max: int = WINDOW_BYTES
    requests_max: int = WINDOW_REQUESTS


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A block to fetch. `bytes_max`: no honest answer is longer; exact for a file's leaves."""

    ref: Ref
    bytes_max: int


@dataclass(slots=True, eq=False)
class _Waiting:
    """A place in the output where a block that was requested will unfold."""

    child: Child
    cost: int


@dataclass(slots=True, eq=False)
class _Unfolding:
    """A place in the output where a node's children still follow."""

    steps: Iterator[Event | Child]
    cost: int


@dataclass(slots=True)
class _Ready:
    event: Event
    cost: int = field(default=0)


class DagReader:
    """The state of one read; see the module's text for the loop around it.

    Raises (from `receive`, `requests` and `events`):
        FormatError: the DAG is malformed, contradicts itself or is too deep.
        InputError: the root is not of the kind that was asked for.
        LimitError: it has more than ENTRIES_MAX entries, or walking it would hold more than OPEN_NODE_BYTES_MAX of nodes.
    """

    def __init__(self, root: Ref, role: Whole, window: Window | None = None) -> None:
        self._window = window or Window()
        self._line: list[_Waiting | _Unfolding | _Ready] = []  # the output still to come, first place first
        self._places: dict[Request, _Waiting] = {}
        self._fresh: list[Request] = []
        self._held_bytes = self._open_bytes = self._entries = 0
        self._place(0, Child(root, role))

    @property
    def done(self) -> bool:
        return not self._line

    def requests(self) -> list[Request]:
        """Blocks to start fetching now; each is returned once, most urgent first."""
        self._advance()
        fresh, self._fresh = self._fresh, []
        return fresh

    def events(self) -> Iterator[Event]:
        """What is ready, in order. Taking events makes room for further requests."""
        while self._line:
            head = self._line[0]
            if isinstance(head, _Waiting):
                return
            if isinstance(head, _Unfolding):
                self._step(0, head)
                continue
            del self._line[0]
            self._held_bytes -= head.cost
            yield head.event

    def receive(self, request: Request, block: bytes) -> None:
        """The bytes of a requested block, which match its CID."""
        place = self._places.pop(request)
        self._unfold(self._line.index(place), place, block)

    def _advance(self) -> None:
        """Unfold from the front until the window is full."""
        at = 0
        while at < len(self._line):
            place = self._line[at]
            if not isinstance(place, _Unfolding):
                at += 1
            elif at and (self._held_bytes >= self._window.bytes_max or at >= self._window.requests_max):
                return
            else:
                self._step(at, place)

    def _step(self, at: int, place: _Unfolding) -> None:
        step = next(place.steps, None)
        if step is None:
            del self._line[at]
            self._open_bytes -= place.cost
        elif isinstance(step, Child):
            self._place(at, step)
        else:
            self._line.insert(at, self._ready(step))

    def _ready(self, event: Event) -> _Ready:
        cost = len(event.data) if isinstance(event, Data) else 0
        self._held_bytes += cost
        return _Ready(event, cost)

    def _place(self, at: int, child: Child) -> None:
        self._entries += isinstance(child.role, Whole)
        if self._entries > ENTRIES_MAX:
            raise LimitError(f"this content has more than {ENTRIES_MAX} entries")
        place = _Waiting(child, _bytes_max(child.ref, child.role))
        self._line.insert(at, place)
        self._held_bytes += place.cost
        if child.ref.cid == EMPTY_BLOCK:
            self._unfold(at, place, b"")
            return
        request = Request(child.ref, place.cost)
        self._places[request] = place
        self._fresh.append(request)

    def _unfold(self, at: int, place: _Waiting, block: bytes) -> None:
        steps = expand(place.child, block)
        self._held_bytes -= place.cost
        if codec_of(place.child.ref.cid) == RAW:  # data, not a node that stays open: it counts on against the window
            self._line[at : at + 1] = [self._ready(step) for step in steps if not isinstance(step, Child)]
            return
        self._open_bytes += len(block)
        if self._open_bytes > OPEN_NODE_BYTES_MAX:
            raise LimitError(f"this content needs more than {OPEN_NODE_BYTES_MAX} bytes of open directories at a time")
        self._line[at] = _Unfolding(steps, len(block))


def _bytes_max(ref: Ref, role: Role) -> int:
    """The longest that the block can be."""
    if isinstance(role, Part) and codec_of(ref.cid) == RAW:
        return role.size
    return BLOCK_BYTES_MAX if ref.tsize is None else min(ref.tsize, BLOCK_BYTES_MAX)


def read_tree(root: Ref, window: Window | None = None) -> DagReader:
    """Everything below the root: a file, a symbolic link or a directory with all that is in it."""
    return DagReader(root, Whole(), window)


def read_file(root: Ref, start: int = 0, stop: int | None = None, window: Window | None = None) -> DagReader:
    """Bytes [start, stop) of a file; what lies beyond its end is clipped."""
    if start < 0 or (stop is not None and stop < start):
        raise InputError(f"not a range of bytes: {start} to {stop}")
    return DagReader(root, Whole(start=start, stop=stop, file_only=True), window)


def list_directory(root: Ref, window: Window | None = None) -> DagReader:
    """One `Entry` for each entry of a directory, in stored order; a file or symbolic link shows as itself, a file unread."""
    return DagReader(root, Whole(descend=False, stop=0), window)


def run(reader: DagReader, fetch: Callable[[Ref], bytes]) -> Iterator[Event]:
    """Drive a reader with a plain function, one block at a time: for blocks that are at hand."""
    while not reader.done:
        for request in reader.requests():
            reader.receive(request, fetch(request.ref))
            yield from reader.events()
        yield from reader.events()


def resolve(root: Ref, path: Sequence[bytes]) -> Generator[Ref, bytes, Ref]:
    """Find what lies at `path` (names of entries, outermost first) below a root: yields each block it needs, is sent its
    bytes, returns the subtree.

    Raises:
        InputError: no such entry, or the path leads through a file or a symbolic link.
        FormatError: the DAG is malformed.
    """
    ref = root
    for depth, name in enumerate(path):
        node = parse_node(ref.cid, (yield ref), ref.tsize)
        if isinstance(node, ShardNode):
            found = yield from _find_in_shards(ref, node, name)
        elif isinstance(node, DirectoryNode):
            found = next(
                (r for link, r in zip(node.links, child_refs(ref.start, node.links), strict=True) if link.name == name), None
            )
        else:
            kind = "file" if isinstance(node, FileNode) else "symbolic link"
            where = name_text(b"/".join(path[:depth])) or "the root"
            raise InputError(f"{where} is a {kind}: nothing lies below it")
        if found is None:
            raise InputError(f"there is no entry {name_text(b'/'.join(path[: depth + 1]))!r}")
        ref = found
    return ref


def _find_in_shards(ref: Ref, node: ShardNode, name: bytes) -> Generator[Ref, bytes, Ref | None]:
    digest, path, used = name_hash(name), 0, 0
    while True:
        bucket = bucket_of(digest, path, used, node)
        if bucket not in node.buckets:
            return None
        at = node.buckets.index(bucket)
        ref = list(child_refs(ref.start, node.links))[at]
        if node.names[at]:
            return ref if node.names[at] == name else None
        path, used = path << node.bits | bucket, used + node.bits
        if used >= HASH_BITS:
            raise FormatError("a sharded directory is deeper than its hash")
        below = parse_node(ref.cid, (yield ref), ref.tsize)
        if not isinstance(below, ShardNode) or below.fanout != node.fanout:
            raise FormatError("a sub-shard is not a shard of the same directory")
        node = below
