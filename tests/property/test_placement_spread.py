"""Spread rules on any network that can keep them, and regions that share a segment evenly.

Labels nest here as they often do in life: a subnet is one operator's, an operator is in one region. Then no pick stands in
another's way for good (the rules are a laminar matroid), so they must hold whenever they can: no exception is allowed.
(Labels that cross are tests/property/test_draw.py's.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dds.placement.draw import Candidate, Rules, draw
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID

SEEDS = st.binary(min_size=1, max_size=8)
GEOMETRIES = ((32, 16), (20, 10), (16, 6), (12, 6), (7, 6), (6, 3), (4, 2), (2, 1), (1, 1))  # n, m


@dataclass(frozen=True)
class Network:
    """Regions of operators of subnets of nodes."""

    nodes: tuple[Candidate, ...]

    def room(self, rules: Rules, region_limit: int, held: Sequence[Candidate] = ()) -> int:
        """How many fragments fit in under the rules, counted from the smallest label up."""
        by_region: Counter[str] = Counter()
        for operator in {c.operator for c in self.nodes}:
            own = [c for c in self.nodes if c.operator == operator]
            subnets = Counter(c.subnet for c in own)
            used = sum(c.operator == operator for c in held)
            fits = sum(
                max(0, min(size, rules.per_subnet - sum(c.subnet == subnet for c in held))) for subnet, size in subnets.items()
            )
            by_region[own[0].region] += max(0, min(fits, rules.per_operator - used))
        taken = Counter(c.region for c in held)
        return sum(max(0, min(fits, region_limit - taken[region])) for region, fits in by_region.items())


@st.composite
def networks(draw_from: st.DrawFn, *, weights: st.SearchStrategy[int]) -> Network:
    """Up to 8 regions of up to 6 operators with up to 3 subnets of up to 3 nodes."""
    shape = st.lists(
        st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=6), min_size=1, max_size=8
    )
    nodes: list[Candidate] = []
    for region, operators in enumerate(draw_from(shape)):
        for operator, subnets in enumerate(operators):
            for subnet, count in enumerate(subnets):
                for _ in range(count):
                    name = f"{region}.{operator}"
                    node = NodeID(sha256(b"%d" % len(nodes)))
                    nodes.append(Candidate(node, f"r{region}", f"o{name}", f"s{name}.{subnet}", draw_from(weights)))
    return Network(tuple(nodes))


def chosen_of(network: Network, drawn: Sequence[NodeID]) -> list[Candidate]:
    by_id = {c.node_id: c for c in network.nodes}
    return [by_id[node] for node in drawn]


def worst(chosen: Sequence[Candidate], label: str) -> int:
    return max(Counter(getattr(c, label) for c in chosen).values())


def keeps(chosen: Sequence[Candidate], rules: Rules) -> bool:
    limits = {"region": rules.per_region, "operator": rules.per_operator, "subnet": rules.per_subnet}
    return all(worst(chosen, label) <= limit for label, limit in limits.items())


def geometry_for(network: Network, data: st.DataObject) -> tuple[int, Rules]:
    """A geometry whose rules the network can keep."""
    fitting = [(n, rules) for n, m in GEOMETRIES if network.room(rules := Rules.for_loss_tolerance(m), rules.per_region) >= n]
    return data.draw(st.sampled_from(fitting))


@given(networks(weights=st.integers(1, 10**6)), st.data(), SEEDS)
@settings(max_examples=40)
def test_every_network_that_can_keep_the_rules_keeps_them(network: Network, data: st.DataObject, seed: bytes) -> None:
    n, rules = geometry_for(network, data)
    drawn = draw(network.nodes, n, rules, seed)
    assert drawn.bends == ()
    assert keeps(chosen_of(network, drawn.chosen), rules)


@given(networks(weights=st.integers(1, 10**6)), st.data(), SEEDS)
@settings(max_examples=40)
def test_a_redraw_keeps_the_rules_together_with_those_who_hold(network: Network, data: st.DataObject, seed: bytes) -> None:
    """Each redraw used to look at itself alone, so that two of them could overfill a region."""
    n, rules = geometry_for(network, data)
    first = chosen_of(network, draw(network.nodes, n, rules, seed).chosen)
    lost = data.draw(st.integers(0, n - 1))
    held, gone = first[lost:], first[:lost]
    left = Network(tuple(c for c in network.nodes if c not in gone))
    lost = min(lost, left.room(rules, rules.per_region, held))
    drawn = draw(left.nodes, lost, rules, seed + b"again", held=held)
    again = chosen_of(network, drawn.chosen)
    assert drawn.bends == ()
    assert not {*again} & {*held}
    assert keeps([*held, *again], rules)


@given(networks(weights=st.just(1)), st.data(), SEEDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
def test_the_fullest_region_holds_as_little_as_it_can_where_weights_are_equal(
    network: Network, data: st.DataObject, seed: bytes
) -> None:
    n, rules = geometry_for(network, data)
    least = next(limit for limit in range(1, n + 1) if network.room(rules, limit) >= n)
    # A region without the weight is not counted on for an even share: a label that somebody made up must not be everywhere.
    for region, size in Counter(c.region for c in network.nodes).items():
        times = 2 if len({c.operator for c in network.nodes if c.region == region}) > 1 else 1
        assume(times * n * size >= min(size, least) * len(network.nodes))
    drawn = draw(network.nodes, n, rules, seed)
    assert worst(chosen_of(network, drawn.chosen), "region") == least
    assert drawn.region_aim <= least  # it counts operators and subnets apart: where both bind in one region it may be too low


@given(st.integers(2, 12), st.integers(4, 12), SEEDS)
def test_equal_regions_differ_by_no_more_than_an_even_share_leaves_over(regions: int, size: int, seed: bytes) -> None:
    nodes = [
        Candidate(NodeID(sha256(b"%d" % number)), f"r{number % regions}", f"o{number}", f"s{number}", 7)
        for number in range(regions * size)
    ]
    assume(len(nodes) >= 16 and regions * 5 >= 16)
    drawn = draw(nodes, 16, Rules.for_loss_tolerance(6), seed)
    counts = Counter(c.region for c in chosen_of(Network(tuple(nodes)), drawn.chosen))
    assert max(counts.values()) == -(-16 // regions)


def test_a_region_made_of_nothing_neither_moves_the_aim_nor_enters_every_segment() -> None:
    """Were every declared region counted on, one small operator could be needed for each even spread."""
    honest = [Candidate(NodeID(sha256(b"h%d" % at)), f"r{at % 5}", f"o{at}", f"s{at}", 1000) for at in range(60)]
    claims = [Candidate(NodeID(sha256(b"c%d" % at)), f"claim{at}", "one", f"c{at}", 1) for at in range(16)]
    rules, drawn_claims = Rules.for_loss_tolerance(6), 0
    for number in range(200):
        found = draw([*honest, *claims], 16, rules, b"%d" % number)
        assert found.region_aim == draw(honest, 16, rules, b"%d" % number).region_aim == 4
        drawn_claims += sum(c.node_id in found.chosen for c in claims)
    assert drawn_claims <= 5  # of 3,200 fragments with 0.03 % of the weight
