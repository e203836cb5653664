"""The ledger's public inputs to proofs, read from a state or from a light client's proven entries.

Decides where each input stands, and puts a node's challenge together. Does not judge: proofs/ does. A light client does not
have every entry at hand: `Entries` says which ones it lacks, and the same function is called again when they have come.
Source: docs/spec/proofs.md, "Challenges" and "Evidence".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

from dds.ledger.records import CHAIN, EPOCHS, NODES, PARAMS, SEGMENTS, Chain, EpochRecord, Former, Segment, Table, V, number_key
from dds.ledger.rules.inventory import find_held, inventory_root, locate, new_assignments, total_leaves
from dds.proofs.audit import Asked
from dds.proofs.challenge import SegmentFacts, Target, audit_seed, drawn_leaves, extra_leaf, target_of

Key = tuple[Table[Any], bytes]  # an entry's table and identifier
Found = tuple[Target, SegmentFacts]


class Reader(Protocol):
    """A state, or a light client's proven entries."""

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None: ...


class NotLoaded(Exception):
    """These entries are needed and not at hand. A matter between `Entries` and who fills them."""

    def __init__(self, keys: Iterable[Key]) -> None:
        super().__init__("entries are not loaded")
        self.keys = tuple(keys)


class Entries:
    """A reader over what was fetched so far; asking for anything else raises NotLoaded."""

    def __init__(self) -> None:
        self._found: dict[bytes, Any] = {}

    def __len__(self) -> int:
        return len(self._found)

    def put(self, key: Key, value: Any) -> None:
        """`value` None: the ledger has no such entry."""
        self._found[key[0].key(key[1])] = value

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None:
        try:
            return cast("V | None", self._found[table.key(identifier)])
        except KeyError:
            raise NotLoaded([(table, identifier)]) from None


class LedgerFacts:
    """What `verify_evidence` asks for, as of the reader's height."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def network(self) -> str:
        return (self._reader.find(CHAIN) or Chain()).network

    @property
    def epochs(self) -> tuple[int, int]:
        """The evidence window: bond that is being taken out is slashable for as long."""
        chain, params = self._reader.find(CHAIN) or Chain(), self._reader.find(PARAMS)
        assert params is not None, "genesis was applied"
        return max(0, chain.epoch - params.evidence_epochs), chain.epoch

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        found = self._reader.find(SEGMENTS, segment_id)
        return None if found is None else _segment_facts(found)


def _segment_facts(segment: Segment | Former) -> SegmentFacts:
    return SegmentFacts(segment.segment_root, segment.stripes, segment.registered_epoch)


def _frozen_facts(segment: Segment, epoch: int) -> SegmentFacts:
    """What the segment was when the inventories of `epoch` were frozen: its former encoding where it got another one since."""
    changed = segment.former if segment.registered_epoch >= epoch else None
    return _segment_facts(changed or segment)


def asked_of(reader: Reader, number: int, epoch: int) -> Asked | None:
    """What a node is asked in the present epoch; None: it is not `epoch` now, or there is nothing to ask of such a node.

    Inventories are frozen for the present epoch only, so a challenge can be put together while its epoch lasts and not later.

    Raises:
        NotLoaded: by `Entries` only, naming as many entries as can be named at once.
    """
    chain, record, params, node = each(
        lambda: reader.find(CHAIN),
        lambda: reader.find(EPOCHS, number_key(epoch)),
        lambda: reader.find(PARAMS),
        lambda: reader.find(NODES, number_key(number)),
    )
    if chain is None or chain.epoch != epoch or record is None or params is None or node is None:
        return None
    total = total_leaves(reader, number)
    if not total or not was_audited(record, number):
        return None
    seed = audit_seed(record.beacon, node.node_id, inventory_root(reader, number))
    drawn = [_drawn(reader, number, epoch, leaf) for leaf in drawn_leaves(seed, total, params.audit_leaves)]
    fresh = [_fresh(reader, number, epoch, seed, *new) for new in new_assignments(reader, number)]
    found = [spot for spot in each(*drawn, *fresh) if spot is not None]
    segments = {target.segment_id: facts for target, facts in found}
    targets = tuple(sorted({target for target, _ in found}))
    return Asked(chain.network, epoch, record.beacon, number, node.node_id, targets, segments)


def was_audited(record: EpochRecord, number: int) -> bool:
    """Whether the node had something to prove when the epoch began."""
    return number // 8 < len(record.audited) and bool(record.audited[number // 8] >> number % 8 & 1)


def each(*looks: Callable[[], Any]) -> Sequence[Any]:
    """The results of independent looks.

    Raises:
        NotLoaded: what any of them lacks, together, so that one request can fetch it all.
    """
    results: list[Any] = []
    missing: list[Key] = []
    for look in looks:
        try:
            results.append(look())
        except NotLoaded as lack:
            missing += lack.keys
    if missing:
        raise NotLoaded(missing)
    return results


def _drawn(reader: Reader, number: int, epoch: int, leaf: int) -> Callable[[], Found | None]:
    def look() -> Found | None:
        segment_id, index, within = locate(reader, number, leaf)
        return _place(reader, number, epoch, segment_id, index, lambda leaves: within)

    return look


def _fresh(reader: Reader, number: int, epoch: int, seed: bytes, segment_id: bytes, index: int) -> Callable[[], Found | None]:
    return lambda: _place(reader, number, epoch, segment_id, index, lambda leaves: extra_leaf(seed, segment_id, index, leaves))


def _place(
    reader: Reader, number: int, epoch: int, segment_id: bytes, index: int, leaf_of: Callable[[int], int]
) -> Found | None:
    held, segment = each(lambda: find_held(reader, number, segment_id, index), lambda: reader.find(SEGMENTS, segment_id))
    if held is None or segment is None:
        return None
    facts = _frozen_facts(segment, epoch)
    target = target_of(facts.stripes, segment_id, index, leaf_of(held.leaves), held.released)
    return None if target is None else (target, facts)
