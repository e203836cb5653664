"""`dds placement`: why a segment lies where it lies, derived again from what is public.

`explain` trusts nobody's word: it takes the genesis and every block, applies the rules anew and makes the draws again
(placement_replay.py). What a draw says of each node is placement/explain.py's. Without a ledger the draw was the client's own:
its seed is in no public place, so only what the nodes say of themselves can be shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds.apps.cli.ledger_session import Desk, with_ledger
from dds.apps.cli.ledger_text import facts, table
from dds.apps.cli.session import Session, command, fields, group, with_client
from dds.primitives.cid import CID, cid_text, parse_cid
from dds.primitives.errors import InputError, IntegrityError, NotFoundError
from dds.primitives.ids import ID_TEXT_CHARS, id_text, parse_id

if TYPE_CHECKING:
    from dds.apps.cli.ledger_replay import Copy
    from dds.apps.cli.placement_replay import Derived, Drawn, Seat
    from dds.placement.explain import Explanation, Place
    from dds.runtime.client import Client
    from dds.runtime.results import SegmentStat

SHORT_CHARS: Final = 12
NOBODY_ELSE: Final = "there is nobody else: every node is chosen or a spare"


def app() -> typer.Typer:
    """The `placement` group."""
    made = group("placement", "Where segments lie, and why.")
    command(made)(explain)
    return made


def explain(
    session: Session,
    what: Annotated[str, typer.Argument(metavar="SEGMENT|CONTENTID", help="A segment, or a content with all of its segments.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Blocks that 'dds ledger export' wrote; asks no ledger.")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every node that was not chosen, not only how many and why.")] = False,
) -> None:
    """Derive again why SEGMENT's nodes were drawn and all others were not. Ends with 5 where the ledger has others."""
    segments = _segments(session, what)
    paid = source is not None or bool(session.open_home().client_config().ledger)
    if not paid:
        _explain_unpaid(session, what)
        return
    derived, names = _derive_from_file(source, segments) if source is not None else _derive_from_host(session, segments)
    for each in derived:
        session.result(document(each, everyone=everyone), describe(each, names, everyone=everyone))
    problems = [problem for each in derived for problem in each.problems]
    if problems:
        raise IntegrityError(
            f"the assignments do not follow from the ledger's blocks: {problems[0]}",
            hint="do not trust this ledger's host; keep its blocks as evidence: dds ledger export FILE",
            problems=problems,
        )


# -- what is asked for ------------------------------------------------------------------------------------------------------


def _segments(session: Session, what: str) -> list[bytes]:
    """Segment ids: the one named, or those of the content."""
    if len(what) == ID_TEXT_CHARS:
        return [parse_id(what, "segment")]
    return [each.segment for each in _stats(session, parse_cid(what))]


def _stats(session: Session, content: CID) -> list[SegmentStat]:
    async def work(client: Client) -> list[SegmentStat]:
        return (await client.stat(content)).segments

    return with_client(session, work)


# -- a ledger applied anew --------------------------------------------------------------------------------------------------


def _derive_from_host(session: Session, segments: Sequence[bytes]) -> tuple[list[Derived], dict[bytes, str]]:
    """
    Raises:
        NotFoundError: the ledger has no such segment.
        IntegrityError: its blocks do not hold.
    """
    from dds.apps.cli.ledger import block_progress, blocks_to
    from dds.apps.cli.ledger_replay import Copy
    from dds.apps.cli.placement_replay import DrawWatch
    from dds.ledger.records import SEGMENTS

    async def work(desk: Desk) -> list[Derived]:
        found = await desk.find_many(SEGMENTS, segments)
        wanted = {name: segment.reservation for name, segment in zip(segments, found, strict=True) if segment is not None}
        _insist_all(segments, wanted)
        head = await desk.client.head()
        watch = DrawWatch(wanted)
        copy = Copy(await desk.client.genesis(), watch)
        with block_progress(session, head.height) as report:
            async for block in blocks_to(desk, head.height):
                if not copy.apply(block):
                    break
                report(copy.height)
        if not copy.problems and copy.tree.root != head.root:
            copy.problems.append(f"the root at height {copy.height} is not the one that the host signed")
        return _derived(copy, watch, segments)

    return with_ledger(session, work), _devnet_names(session)


def _derive_from_file(path: Path, segments: Sequence[bytes]) -> tuple[list[Derived], dict[bytes, str]]:
    """
    Raises:
        InputError: not such a file.
        NotFoundError: no block registers the segment.
        IntegrityError: the blocks do not hold.
    """
    from dds.apps.cli.ledger_replay import Copy
    from dds.apps.cli.placement_replay import DrawWatch, Exported, last_reservations

    exported = Exported(path)
    genesis = exported.genesis()
    wanted = last_reservations(exported.blocks(), genesis.network, segments)
    _insist_all(segments, wanted)
    watch = DrawWatch(wanted)
    copy = Copy(genesis, watch)
    for block in exported.blocks():
        if not copy.apply(block):
            break
    return _derived(copy, watch, segments), {}


def _insist_all(segments: Sequence[bytes], known: dict[bytes, bytes]) -> None:
    missing = [each for each in segments if each not in known]
    if missing:
        raise NotFoundError(
            f"the ledger has no segment {id_text(missing[0])}", hint="segments of a content: dds stat CONTENTID --verbose"
        )


def _derived(copy: Copy, watch: object, segments: Sequence[bytes]) -> list[Derived]:
    from dds.apps.cli.placement_replay import DrawWatch, derive

    assert isinstance(watch, DrawWatch)
    if copy.problems:
        raise IntegrityError(
            f"the ledger does not hold: {copy.problems[0]}", hint="all of it: dds ledger verify", problems=copy.problems
        )
    return [derive(copy, watch, each) for each in segments]


def _devnet_names(session: Session) -> dict[bytes, str]:
    """How this home's devnet calls its nodes."""
    from dds.runtime.devnet import Devnet

    devnet = Devnet(session.open_home())
    return {parse_id(member.id): member.name for member in devnet.members()} if devnet.exists else {}


# -- what is told -----------------------------------------------------------------------------------------------------------


def document(found: Derived, *, everyone: bool) -> dict[str, object]:
    """For machines."""
    from dds.placement.explain import explain as explain_drawing

    draws = []
    for drawn in found.draws:
        told = explain_drawing(drawn.drawing)
        made = fields(told)
        if not everyone:
            made = {name: value for name, value in made.items() if name not in ("not_drawn", "left_out")}
        made["not_chosen"] = {"drawable": len(told.not_drawn), **Counter(str(each.reason) for each in told.left_out)}
        draws.append({"draw": drawn.number, "height": drawn.height, "epoch": drawn.epoch, "indices": drawn.indices, **made})
    return {
        "segment": id_text(found.segment_id),
        "rederived": not found.problems,
        "problems": list(found.problems),
        "indices": [fields(seat) for seat in found.seats],
        "draws": draws,
    }


def describe(found: Derived, names: dict[bytes, str], *, everyone: bool) -> str:
    """For people: who holds it and why, then each draw."""
    held = [seat for seat in found.seats if seat.node is not None]
    verdict = f"re-derived: same {len(held)} nodes" if not found.problems else f"WRONG: {'; '.join(found.problems)}"
    parts = [f"segment {id_text(found.segment_id)}\n{verdict}", seat_table(found.seats, names)]
    for drawn in found.draws:
        parts.append(draw_text(drawn, names, everyone=everyone))
    return "\n\n".join(parts)


def seat_table(seats: Sequence[Seat], names: dict[bytes, str]) -> str:
    rows = [(f"{seat.index}", _name(seat.node, names) if seat.node else "nobody", seat.state, seat.how) for seat in seats]
    return table(("index", "node", "state", "how"), rows, right=(0,))


def draw_text(drawn: Drawn, names: dict[bytes, str], *, everyone: bool) -> str:
    """One draw: what it went by, whom it chose, and of all others why not."""
    from dds.placement.explain import explain as explain_drawing

    told = explain_drawing(drawn.drawing)
    title = f"redraw {drawn.number}" if drawn.number else "the draw"
    rules = told.rules
    pairs = [
        (title, f"epoch {drawn.epoch}, block {drawn.height}, seed {told.seed.hex()}"),
        ("candidates", f"{told.candidates} {told.role} nodes of {told.candidates + len(told.left_out)}"),
        ("at most", f"{rules.per_subnet} a subnet, {rules.per_operator} an operator, {rules.per_region} a region"),
        ("evenly", f"the fullest region holds {told.region_worst}; the least that it could is {told.region_aim}"),
    ]
    pairs += [("bent", risk.text) for risk in told.risks] or [("bent", "no rule")]
    rows = [_place_row(f"{index}", place, names) for index, place in zip(drawn.indices, told.chosen, strict=True)]
    rows += [_place_row(f"spare {at}", place, names) for at, place in enumerate(told.spares)]
    chosen = table(("index", "node", "region", "operator", "subnet", "weight", ""), rows, right=(5,))
    return f"{facts(pairs)}\n\n{chosen}\n\n{_others(told, names, everyone=everyone)}"


def _place_row(index: str, place: Place, names: dict[bytes, str]) -> tuple[str, ...]:
    newcomer = "" if place.is_vetted else "not vetted yet"
    share = f"{place.weight_ppm / 10_000:.2f} %"
    return index, _name(place.node_id, names), place.region, _operator(place.operator), place.subnet, share, newcomer


def _others(told: Explanation, names: dict[bytes, str], *, everyone: bool) -> str:
    """Those that were not drawn: each with its reason, or how many for each reason."""
    from dds.placement.explain import TEXTS

    if everyone:
        rows = [(_name(each.node_id, names), _not_drawn(each)) for each in told.not_drawn]
        rows += [(_name(each.node_id, names), TEXTS[each.reason]) for each in told.left_out]
        return table(("not chosen", "because it"), rows) if rows else NOBODY_ELSE
    counts = Counter(_full_text(each) for each in told.not_drawn)
    rows = [(f"{count}", f"could have been drawn and was not{text}") for text, count in sorted(counts.items())]
    reasons = Counter(each.reason for each in told.left_out)
    rows += [(f"{reasons[reason]}", text) for reason, text in TEXTS.items() if reasons[reason]]
    return table(("not chosen", "because each (--all names them)"), rows, right=(0,)) if rows else NOBODY_ELSE


def _not_drawn(place: Place) -> str:
    share = f"weight {place.weight_ppm / 10_000:.2f} %"
    newcomer = ", not vetted yet" if not place.is_vetted else ""
    return f"could have been drawn ({share}{newcomer}) and was not{_full_text(place)}"


def _full_text(place: Place) -> str:
    return f"; its {' and '.join(place.full)} could take no more in the end" if place.full else ""


def _name(node: bytes, names: dict[bytes, str]) -> str:
    short = id_text(node)[:SHORT_CHARS]
    return f"{names[node]} {short}" if node in names else short


def _operator(label: str) -> str:
    """A ledger's operators are accounts in hex."""
    return id_text(bytes.fromhex(label))[:SHORT_CHARS] if len(label) == 64 else label


# -- without a ledger -------------------------------------------------------------------------------------------------------


def _explain_unpaid(session: Session, what: str) -> None:
    """What nodes say of themselves: the draw was made by whoever put the content, with a seed that nobody else has.

    Raises:
        InputError: a segment, of which nothing is known without its content.
    """
    if len(what) == ID_TEXT_CHARS:
        raise InputError(
            "this network keeps no ledger: who holds a segment is known from its content only",
            hint="dds placement explain CONTENTID",
        )
    note = "drawn by the client that put it, by weight of free space; its seed is not public, so it cannot be derived again"
    content = parse_cid(what)
    for each in _stats(session, content):
        regions, operators = Counter(h.region for h in each.holders), Counter(h.operator for h in each.holders)
        rows = [
            (f"{h.index}", id_text(h.node)[:SHORT_CHARS], h.region, h.operator, "live" if h.live else "lost")
            for h in each.holders
        ]
        worst = (
            f"{max(regions.values(), default=0)} in one region, {max(operators.values(), default=0)} of one operator, at most"
        )
        text = f"segment {id_text(each.segment)} of {cid_text(content)}\n{note}\n\n"
        text += f"{table(('index', 'node', 'region', 'operator', 'state'), rows, right=(0,))}\n\n{worst}"
        session.result({**fields(each), "rederived": None, "note": note}, text)
