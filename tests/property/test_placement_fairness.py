"""Draws are fair to weight, and one purse cut into many nodes gains nothing: through the ledger's weights and the draw.

Every seed is fixed, so each count is the same on every machine; bounds are those of a chi-square test that a fair draw fails
once in a thousand seeds.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisNode, GenesisOperator, apply_genesis
from dds.ledger.params import Params
from dds.ledger.rules.weights import Wanted, screen
from dds.ledger.state import State
from dds.placement.draw import Candidate, Rules, draw
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB, MIB

STANDARD = Rules.for_loss_tolerance(6)
SYBIL_NODES = 16
DRAWS = 400
GAIN_MAX = 1.2  # as docs/spec/placement.md says: limits that larger regions feel, and chance


def apart(weights: list[int]) -> list[Candidate]:
    """Nodes that share no label: no rule binds."""
    return [
        Candidate(NodeID(sha256(b"%d" % number)), f"r{number}", f"o{number}", f"s{number}", weight)
        for number, weight in enumerate(weights)
    ]


def test_the_second_pick_follows_the_weights_of_those_who_are_left() -> None:
    nodes = apart([1 + 4 * (number % 5) for number in range(20)])
    total, draws = sum(c.weight for c in nodes), 2500
    seconds = Counter(draw(nodes, 2, STANDARD, b"second %d" % at, spares=0).chosen[1] for at in range(draws))
    chi_square = 0.0
    for c in nodes:
        chance = sum(o.weight / total * c.weight / (total - o.weight) for o in nodes if o is not c)
        chi_square += (seconds[c.node_id] - draws * chance) ** 2 / (draws * chance)
    assert chi_square < 43.8  # 19 degrees of freedom


def test_whole_segments_are_drawn_as_by_weighted_sampling_without_replacement() -> None:
    """How often each of 40 nodes is among 16, against a plain simulation of drawing lots."""
    nodes, draws, rng = apart([1 + number % 8 for number in range(40)]), 800, Random(7)
    ours = Counter(node for at in range(draws) for node in draw(nodes, 16, STANDARD, b"whole %d" % at, spares=0).chosen)
    plain: Counter[NodeID] = Counter()
    for _ in range(draws):
        lots = sorted(nodes, key=lambda c: rng.expovariate(1) / c.weight)  # Efraimidis and Spirakis: the same distribution
        plain.update(c.node_id for c in lots[:16])
    chi_square = sum((ours[c.node_id] - plain[c.node_id]) ** 2 / (ours[c.node_id] + plain[c.node_id]) for c in nodes)
    assert (
        chi_square < 72.1
    )  # 39 degrees of freedom; drawing without replacement makes the counts vary less than this allows for


def test_equal_regions_leave_their_nodes_shares_to_the_weights() -> None:
    """In six regions that are alike the even spread takes from nobody: a heavy node is drawn more often wherever it is."""
    nodes = [Candidate(NodeID(sha256(b"%d" % at)), f"r{at % 6}", f"o{at}", f"s{at}", 3 if at < 36 else 1) for at in range(72)]
    counts = Counter(node for at in range(500) for node in draw(nodes, 16, STANDARD, b"even %d" % at, spares=0).chosen)
    heavy, light = sum(counts[c.node_id] for c in nodes[:36]), sum(counts[c.node_id] for c in nodes[36:])
    assert 2.3 < heavy / light < 3.0  # 3 for the first pick; the last ones find the heavy nodes taken
    by_region = Counter(c.region for c in nodes for _ in range(counts[c.node_id]))
    assert max(by_region.values()) < 1.08 * min(by_region.values())


# -- one purse, many nodes --------------------------------------------------------------------------------------------------


def a_network(sybil_nodes: int, *, regions: int) -> State:
    """Forty honest nodes of twenty operators in five regions, and one operator with the capacity and bond of two of them."""
    honest = [(f"honest {at // 2}", f"r{at % 5}", 1024 * GIB) for at in range(40)]
    sybil = [("sybil", f"r{at % regions}", 2048 * GIB // sybil_nodes) for at in range(sybil_nodes)]
    operators = sorted({name for name, _, _ in honest} | {"sybil"})
    nodes = tuple(
        GenesisNode(
            sha256(b"node %d" % at),
            sha256(name.encode()),
            sha256(name.encode()),
            ("ssn",),
            region,
            f"net {at}",
            size,
            1,
            9000,
            TOKEN,
        )
        for at, (name, region, size) in enumerate([*honest, *sybil])
    )
    genesis = Genesis(
        GENESIS_VERSION,
        "sybil",
        Params(bond_need_per_tib=50 * TOKEN),
        (),
        tuple(GenesisOperator(sha256(name.encode()), 100 * TOKEN, ()) for name in operators),
        nodes,
    )
    entries: dict[bytes, bytes] = {}
    state = State(entries)
    apply_genesis(state, genesis)
    return state


def played(state: State) -> tuple[float, float, int]:
    """The Sybil's share of the weight, its share of the fragments of many segments, and the most that it had in one."""
    pool = screen(state, Wanted("ssn", MIB, 1000, 100)).candidates
    sybil = sha256(b"sybil").hex()
    hers = {c.node_id for c in pool if c.operator == sybil}
    weight = sum(c.weight for c in pool if c.operator == sybil) / sum(c.weight for c in pool)
    drawn = [draw(pool, 16, STANDARD, b"sybil %d" % at, spares=0) for at in range(DRAWS)]
    held = [sum(node in hers for node in each.chosen) for each in drawn]
    return weight, sum(held) / (16 * DRAWS), max(held)


@pytest.mark.parametrize("regions", [1, 5, 16])
def test_one_operator_with_many_nodes_gets_no_more_than_its_weight(regions: int) -> None:
    """Not in weight, not in fragments, in one region, in all of them, or in regions that it made up for itself."""
    few_weight, _, _ = played(a_network(2, regions=min(2, regions)))
    weight, share, most = played(a_network(SYBIL_NODES, regions=regions))
    assert weight <= few_weight + 1e-6
    assert share <= GAIN_MAX * weight, f"{share:.4f} of the fragments with {weight:.4f} of the weight"
    assert most <= 2  # m // 3


def test_a_bond_shared_by_more_capacity_weighs_no_more() -> None:
    """Declaring twice the space on the same bond: what it has free doubles, what it weighs does not."""
    state = a_network(2, regions=2)
    before, _, _ = played(state)
    for number in (40, 41):
        node = state.node(number)
        state.put_node(
            type(node)(**{name: getattr(node, name) for name in node.__struct_fields__} | {"capacity_bytes": 4 << 40})
        )
    state.keep()
    after, _, _ = played(state)
    assert after <= before + 1e-6
