"""Deriving a segment's assignments again from blocks alone, and what is told of a draw."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dds.apps.cli import exits
from dds.apps.cli.ledger_replay import Copy
from dds.apps.cli.main import run
from dds.apps.cli.placement_replay import Derived, DrawWatch, derive
from dds.placement.draw import Candidate, Rules, draw
from dds.placement.explain import Drawing, LeftOut, Reason, explain
from dds.primitives.errors import NotFoundError
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID, id_text
from dds.storage.home import ClientConfig, Home, write_client_config
from dds.wire.ledger import Reserve
from tests.ledger_desk import LedgerDesk, ledger_desk
from tests.placement_chain import CONTRACT, CREATOR, NODES, Chain, genesis

Capture = pytest.CaptureFixture[str]


def rederive(chain: Chain, segment: bytes, *, reservation: bytes = b"") -> Derived:
    watch = DrawWatch({segment: reservation or chain.segment().reservation})
    copy = Copy(genesis(), watch)
    assert all(copy.apply(block) for block in chain.blocks), copy.problems
    return derive(copy, watch, segment)


# -- following the draws ----------------------------------------------------------------------------------------------------


def test_assignments_follow_from_the_blocks_alone() -> None:
    chain = Chain()
    _, second, _ = chain.reserve(count=3)  # one transaction, three draws: the second is the segment's
    chosen = chain.reservation(second).chosen
    found = rederive(chain, chain.register(second, chosen))
    assert not found.problems
    assert [seat.node for seat in found.seats] == [NODES[number].public for number in chosen]
    assert {seat.how for seat in found.seats} == {"as drawn"}
    assert [each.number for each in found.draws] == [0]


def test_a_spare_that_stands_in_is_told_with_whom_it_stands_in_for() -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    drawn = chain.reservation(reservation)
    found = rederive(chain, chain.register(reservation, [*drawn.chosen[:3], drawn.spares[2], *drawn.chosen[4:]]))
    absent = id_text(NODES[drawn.chosen[3]].public)[:12]
    assert not found.problems
    assert found.seats[3].how == f"drawn {absent} did not take it; spare 2 stands in"


def test_nodes_drawn_for_each_others_index_are_told_so() -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    chosen = list(chain.reservation(reservation).chosen)
    found = rederive(chain, chain.register(reservation, [chosen[1], chosen[0], *chosen[2:]]))
    assert not found.problems
    assert found.seats[0].how.endswith("the node drawn for index 1 stands in")


def test_a_redraw_is_derived_with_those_who_hold_the_segment() -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    segment = chain.register(reservation, chain.reservation(reservation).chosen)
    chain.lose(4)
    chain.lose(1)
    found = rederive(chain, segment)
    assert not found.problems
    assert [(each.number, each.indices) for each in found.draws] == [(0, (0, 1, 2, 3, 4, 5)), (1, (4,)), (2, (1,))]
    assert (found.seats[4].how, found.seats[1].how) == ("as drawn by redraw 1", "as drawn by redraw 2")
    redraw = found.draws[1].drawing
    assert [each.reason for each in redraw.left_out].count(Reason.HOLDS) == 5
    assert {each.node_id for each in redraw.held} == {each.node for each in found.seats if each.index not in (1, 4)} | {
        found.draws[0].drawing.found.chosen[1]
    }


def test_a_refused_reservation_leaves_no_draw_behind() -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    segment = chain.register(reservation, chain.reservation(reservation).chosen)
    chain.send(NODES[3], Reserve(CONTRACT, 1, 6, 3, 1), code="not-the-publisher")
    chain.send(CREATOR, Reserve(CONTRACT, 1, 60, 3, 1), code="not-enough-nodes")
    assert len(rederive(chain, segment).draws) == 1


def test_holders_who_were_not_drawn_are_named() -> None:
    """As if the ledger's rules had let a stranger in: the draw is made again with another seed."""
    chain = Chain()
    (reservation,) = chain.reserve()
    segment = chain.register(reservation, chain.reservation(reservation).chosen)
    watch = DrawWatch({segment: reservation})
    copy = Copy(genesis(), watch)
    assert all(copy.apply(block) for block in chain.blocks)
    (drawn,) = watch.draws[segment]
    other = draw(drawn.drawing.pool, 6, Rules.for_loss_tolerance(3), b"another", spares=0)
    watch.draws[segment] = [replace(drawn, drawing=replace(drawn.drawing, found=other))]
    problems = derive(copy, watch, segment).problems
    assert problems[0] == "draw 0, made again, gives other nodes"
    strangers = [seat for seat in derive(copy, watch, segment).seats if not seat.follows]
    assert strangers and all(seat.node not in other.chosen and "drawn was" in seat.how for seat in strangers)


def test_a_segment_without_its_reservations_draw_is_no_match() -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    segment = chain.register(reservation, chain.reservation(reservation).chosen)
    assert "no block has the reservation" in rederive(chain, segment, reservation=bytes(32)).problems[0]
    with pytest.raises(NotFoundError):
        rederive(chain, sha256(b"another"), reservation=reservation)


# -- what is told of a draw -------------------------------------------------------------------------------------------------


def test_every_node_of_a_network_has_its_place_or_its_reason() -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    (drawn,) = rederive(chain, chain.register(reservation, chain.reservation(reservation).chosen)).draws
    told = explain(drawn.drawing)
    places = [*told.chosen, *told.spares, *told.not_drawn]
    assert {each.node_id for each in places} | {each.node_id for each in told.left_out} == {key.public for key in NODES}
    assert len(places) + len(told.left_out) == len(NODES)
    assert {each.node_id: each.reason for each in told.left_out} == {
        NODES[16].public: Reason.ASK,
        NODES[17].public: Reason.NO_ROOM,
    }
    assert 999_980 <= sum(each.weight_ppm for each in places) <= 1_000_000
    assert (told.region_worst, told.region_aim, told.risks) == (2, 2, ())


def test_who_was_not_drawn_learns_which_of_its_labels_was_full() -> None:
    pool = [a_candidate(number, "east" if number < 4 else f"far-{number}", f"op-{number // 2}") for number in range(10)]
    told = explain(a_drawing(pool, 4, 3))
    assert not told.risks
    for each in told.not_drawn:
        mates = [place for place in told.chosen if place.operator == each.operator]
        assert ("operator" in each.full) == bool(mates)


def test_where_a_rule_bent_a_label_is_full_with_as_many_as_the_worst_has() -> None:
    pool = [a_candidate(number, f"region-{number % 4}", f"op-{number % 5}") for number in range(40)]
    told = explain(a_drawing(pool, 16, 6))  # two of each of five operators are too few
    assert [risk.rule for risk in told.risks] == ["operator"]
    held = Counter(place.operator for place in told.chosen)
    assert len({*held.values()}) > 1
    for each in told.not_drawn:
        assert ("operator" in each.full) == (held[each.operator] == max(held.values()))


def test_a_bend_tells_how_many_more_losses_survive() -> None:
    pool = [a_candidate(number, "here" if number < 5 else "there", f"op-{number}") for number in range(6)]
    (risk,) = explain(a_drawing(pool, 6, 3)).risks
    assert (risk.rule, risk.limit, risk.worst, risk.survives) == ("region", 2, 5, -2)
    assert "its loss alone loses data" in risk.text


def a_candidate(number: int, region: str, operator: str) -> Candidate:
    return Candidate(NodeID(sha256(b"%d" % number)), region, operator, f"net-{number}", 1)


def a_drawing(pool: list[Candidate], n: int, m: int) -> Drawing:
    found = draw(pool, n, Rules.for_loss_tolerance(m), b"seed", spares=0)
    return Drawing(tuple(pool), (LeftOut(NodeID(bytes(32)), Reason.JAILED),), n, m, b"seed", found)


# -- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that knows no ledger and no network that answers."""
    made = Home.open(tmp_path / "home")
    write_client_config(made.config_file, ClientConfig("elsewhere"))
    return made.root


def test_an_exported_file_is_enough(home: Path, tmp_path: Path, capsys: Capture) -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    drawn = chain.reservation(reservation)
    segment = id_text(chain.register(reservation, [*drawn.chosen[:5], drawn.spares[0]]))
    file = chain.write(tmp_path / "blocks.jsonl")
    ask = ["--home", str(home), "placement", "explain", segment, "--from", str(file)]
    assert run(ask) == exits.OK
    text = capsys.readouterr().out
    assert "re-derived: same 6 nodes" in text and "spare 0 stands in" in text and "asks more than the price" in text
    assert run([*ask, "--json", "--all"]) == exits.OK
    said = json.loads(capsys.readouterr().out)
    assert said["rederived"] is True and len(said["indices"]) == 6
    (made,) = said["draws"]
    assert len(made["chosen"]) + len(made["spares"]) + len(made["not_drawn"]) + len(made["left_out"]) == len(NODES)
    assert made["not_chosen"]["ask-above-price"] == 1


def test_a_file_that_was_tampered_with_ends_with_code_5(home: Path, tmp_path: Path, capsys: Capture) -> None:
    chain = Chain()
    (reservation,) = chain.reserve()
    segment = id_text(chain.register(reservation, chain.reservation(reservation).chosen))
    file = chain.write(tmp_path / "blocks.jsonl")
    lines = file.read_text().splitlines()
    moved = {**json.loads(lines[1]), "time_ms": 5 * 3_600_000}  # another epoch has another beacon
    file.write_text("\n".join([lines[0], json.dumps(moved), *lines[2:]]))
    assert run(["--home", str(home), "placement", "explain", segment, "--from", str(file)]) == exits.INTEGRITY
    assert "block 2: the root is" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"height": 1}', "\x00\xff", '{"height":1,"time_ms":0,"root":"zz","txs":[]}'])
def test_what_is_no_export_is_bad_input(home: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "blocks.jsonl"
    file.write_text(text)
    ask = ["--home", str(home), "placement", "explain", id_text(bytes(32)), "--from"]
    assert run([*ask, str(file)]) == exits.BAD_INPUT
    assert run([*ask, str(tmp_path / "none")]) == exits.BAD_INPUT


def test_a_segment_that_no_block_registers_is_not_found(home: Path, tmp_path: Path) -> None:
    file = Chain().write(tmp_path / "blocks.jsonl")
    assert run(["--home", str(home), "placement", "explain", id_text(bytes(32)), "--from", str(file)]) == exits.NOT_FOUND


def test_without_a_ledger_a_segment_alone_cannot_be_explained(home: Path, capsys: Capture) -> None:
    assert run(["--home", str(home), "placement", "explain", id_text(bytes(32))]) == exits.BAD_INPUT
    assert "keeps no ledger" in capsys.readouterr().err


def test_the_ledgers_host_is_asked_for_blocks_and_nothing_else(tmp_path: Path, capsys: Capture) -> None:
    with ledger_desk(tmp_path) as desk:
        store(desk)
        capsys.readouterr()
        segment = id_text(sha256(b"one"))
        assert desk.run("placement", "explain", segment) == exits.OK
        assert "re-derived: same 3 nodes" in capsys.readouterr().out
        assert desk.run("placement", "explain", id_text(bytes(32))) == exits.NOT_FOUND
        file = tmp_path / "blocks.jsonl"
        assert desk.run("ledger", "export", str(file)) == exits.OK
        assert desk.run("placement", "explain", segment, "--from", str(file)) == exits.OK


def store(desk: LedgerDesk) -> None:
    assert desk.run("contract", "open", "custom", "-k", "2", "-m", "1", "--deposit", "1", "--term", "10", "-y") == exits.OK
    desk.store("custom", b"one")
