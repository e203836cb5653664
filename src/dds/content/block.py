"""Blocks, references to blocks, and positions.

A *position* says where a block lies in the post-order traversal of a DAG (children in link order, then the node), counted in
serialized block bytes, repeats included. Because a link's Tsize is the size of everything below it, positions follow top-down
from the nodes alone: the subtree that starts at s has its first child's subtree at s, the next at s + Tsize of the first, and
so on, and ends at s + its own Tsize. A manifest is sorted by position, so a range read finds its blocks without reading all
of it. See docs/spec/content-id.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dds.content.dagpb import PBLink
from dds.primitives.cid import CID


@dataclass(frozen=True, slots=True)
class Block:
    """One node of a content DAG. `data` hashes to `cid`: whoever makes a Block has seen to it."""

    cid: CID
    data: bytes


class Built(NamedTuple):
    """A finished subtree: its root, the serialized bytes of all its blocks (repeats counted), the user bytes in it (0 for
    directories and symbolic links)."""

    cid: CID
    tsize: int
    filesize: int


class Ref(NamedTuple):
    """A subtree that is to be read. `start`: position of its first byte; None when a link above carries no Tsize, and then
    the block can only be found by its CID."""

    cid: CID
    start: int | None = 0
    tsize: int | None = None

    @property
    def end(self) -> int | None:
        """The position just behind the subtree's own block, which comes last: the block is the one with the greatest
        position below `end`."""
        return None if self.start is None or self.tsize is None else self.start + self.tsize


def child_positions(start: int | None, links: tuple[PBLink, ...]) -> list[int | None]:
    """Where the subtree behind each link starts, when the node's own subtree starts at `start`."""
    return [ref.start for ref in child_refs(start, links)]


def child_refs(start: int | None, links: tuple[PBLink, ...]) -> Iterator[Ref]:
    """The subtrees behind the links, in order; positions are None from the first link without a Tsize on."""
    for link in links:
        yield Ref(link.cid, start, link.tsize)
        start = None if start is None or link.tsize is None else start + link.tsize
