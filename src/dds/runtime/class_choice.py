"""Which class a put gets, before anything else of it is done: the contract, the nodes and what is resumed depend on it.

The one place where "auto" becomes a class, and the explanation of it (`dds put --explain`), which stores nothing. Does not
decide by which rules (placement/policy.py, storage/policy_file.py). Source: docs/spec/policy.md.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from dds.erasure.geometry import Geometry, class_geometry, loss_probability, stored_bytes, stripe_shapes
from dds.placement.policy import AUTO, FALLBACK_CLASS, Decision, Facts, PassedOver, Policy, decide, where_archive_fits
from dds.primitives.errors import InputError
from dds.primitives.units import CHUNK_BYTES, MIB
from dds.runtime.offers import Offer
from dds.runtime.results import PutOptions
from dds.storage.source import BuiltTree, SourceOptions, measure_dag
from dds.storage.source_facts import STREAM, facts_of
from dds.wire.segment import INDEX_HEAD_BYTES, INDEX_ROW_BYTES

NODE_LOSSES: Final = (0.01, 0.05, 0.10)  # for which an explanation says how likely a loss of data is
ASSUMPTION: Final = "each node is lost with this chance independently of the others, and nothing is repaired"


@dataclass(frozen=True, slots=True)
class Choice:
    """`options` names a class; `decision` is None where the creator did."""

    options: PutOptions
    facts: Facts
    decision: Decision | None
    where: str  # the rule file, or who chose

    @property
    def note(self) -> str | None:
        """What a put's result says of it: something, where it is not simply standard."""
        chosen = self.decision
        if chosen is None or (chosen.class_name == FALLBACK_CLASS and not chosen.refused_class):
            return None
        return f"class {chosen.class_name} by rule {chosen.rule} ({chosen.label or 'no label'}) of {self.where}: {chosen.why}"


@dataclass(frozen=True, slots=True)
class LossChance:
    node_loss: float  # of each node
    segment: float  # that one segment is lost
    content: float  # that anything of the content is


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a put of this source would be; sizes in bytes, before deduplication and compression, which can only save."""

    facts: Facts
    class_name: str
    k: int
    m: int
    rules: str  # the file that they are from; empty: the creator chose
    rule: int
    label: str
    why: str
    passed_over: tuple[PassedOver, ...]
    term: str
    archive_after_days: int | None
    content_bytes: int
    block_bytes: int
    stored_bytes: int  # by all nodes together
    segments: int
    nodes_per_segment: int
    losses_survived: int  # nodes of any segment
    loss_chances: tuple[LossChance, ...]
    assumption: str
    offer: Offer | None = None  # where the network is paid
    no_offer: str = ""  # why there is none, where it is


async def choose_class(source: Path | BinaryIO, options: PutOptions, policy: Policy, *, has_archive: bool) -> Choice:
    """`options` with a class in place of "auto"; the same source under the same rules always gets the same one.

    `has_archive`: the network has enough archive nodes for one segment.

    Raises:
        InputError: the source cannot be read.
    """
    shape = SourceOptions(options.chunker, options.hidden, options.follow_symlinks)
    facts = await asyncio.to_thread(facts_of, source, shape) if isinstance(source, Path) else STREAM
    if options.class_name != AUTO:
        return Choice(options, facts, None, "")
    decision = where_archive_fits(decide(facts, policy.rules), has_archive=has_archive)
    chosen = replace(
        options,
        class_name=decision.class_name,
        k=decision.k,
        m=decision.m,
        term=options.term or decision.term,
        archive_after_days=decision.archive_after_days,
    )
    return Choice(chosen, facts, decision, policy.where)


async def explain_put(source: Path | BinaryIO, choice: Choice) -> Explanation:
    """What would be stored, and how safely, without storing it.

    Raises:
        InputError, SourceChangedError: about the source.
    """
    if not isinstance(source, Path):
        raise InputError("standard input cannot be explained: its size is not known", hint="write it to a file first")
    options = choice.options
    shape = SourceOptions(options.chunker, options.hidden, options.follow_symlinks)
    tree = await asyncio.to_thread(measure_dag, source, shape)
    geometry = class_geometry(options.class_name, options.k, options.m)
    widths, stored = _segments(geometry, tree)
    decision = choice.decision
    return Explanation(
        facts=choice.facts,
        class_name=options.class_name,
        k=geometry.k,
        m=geometry.m,
        rules=choice.where,
        rule=decision.rule if decision is not None else 0,
        label=decision.label if decision is not None else "",
        why=decision.why if decision is not None else "you named it",
        passed_over=decision.passed_over if decision is not None else (),
        term=options.term,
        archive_after_days=decision.archive_after_days if decision is not None else None,
        content_bytes=tree.content_bytes,
        block_bytes=tree.root.tsize,
        stored_bytes=stored,
        segments=len(widths),
        nodes_per_segment=max(widths),
        losses_survived=geometry.m,
        loss_chances=loss_chances(geometry, widths),
        assumption=ASSUMPTION,
    )


def loss_chances(geometry: Geometry, widths: Sequence[int]) -> tuple[LossChance, ...]:
    """For segments of so many nodes each: a binomial tail for one, and that any of them goes, drawn independently."""
    rows = []
    for node_loss in NODE_LOSSES:
        each = [loss_probability(Geometry(width - geometry.m, geometry.m), node_loss) for width in widths]
        content = -math.expm1(sum(math.log1p(-chance) for chance in each))
        rows.append(LossChance(node_loss, max(each), content))
    return tuple(rows)


def _segments(geometry: Geometry, tree: BuiltTree) -> tuple[list[int], int]:
    """How many nodes each segment has, and what all nodes keep together."""
    blocks = tree.root.tsize // CHUNK_BYTES + tree.files + tree.directories + tree.symlinks
    left = tree.root.tsize + blocks * INDEX_ROW_BYTES + INDEX_HEAD_BYTES
    full = geometry.segment_bytes - MIB  # a segment closes before the block that it has no room for
    widths: list[int] = []
    stored = 0
    while left > 0:
        shapes = stripe_shapes(geometry, min(left, full))
        widths.append(max(stripe.k + stripe.m for stripe in shapes))
        stored += stored_bytes(shapes)
        left -= full
    return widths, stored
