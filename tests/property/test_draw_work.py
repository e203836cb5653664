"""How much a draw looks at, whatever labels its candidates claim: counted in labels looked up, never in time.

A draw runs inside of consensus, 64 times in one transaction: whoever makes up labels must not be able to make it long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import ClassVar

import pytest

from dds.placement.draw import Candidate, Rules, draw
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID
from tests.vectors.draw_oracle import Oracle

NODES = 1_500
LOOKS_PER_NODE_MAX = 80  # 8 where nothing is in the way

Labels = tuple[object, object, object]  # region, operator, subnet


class Counted(str):
    """A label that counts how often it is looked up."""

    __slots__ = ()
    lookups: ClassVar[list[int]] = [0]

    def __hash__(self) -> int:
        self.lookups[0] += 1
        return super().__hash__()


def network(labels: Callable[[int, Random], Labels], nodes: int = NODES, label: type[str] = Counted) -> list[Candidate]:
    rng, pool = Random(1), []
    for number in range(nodes):
        region, operator, subnet = (label(each) for each in labels(number, rng))
        pool.append(Candidate(NodeID(sha256(b"%d" % number)), region, operator, subnet, 1 + number % 7))
    return pool


def benign(number: int, rng: Random) -> Labels:
    return rng.randrange(8), rng.randrange(NODES // 3), number


def one_operator_everywhere(number: int, rng: Random) -> Labels:
    """It has half of the weight in six regions; all others are in three of these."""
    return (rng.randrange(6), "big", number) if number % 2 else (rng.randrange(3), number, number)


def one_operator_is_needed(number: int, rng: Random) -> Labels:
    """All others are in two regions, where they cannot hold a segment."""
    return (rng.randrange(6), "big", number) if number % 2 else (rng.randrange(2), number, number)


def few_subnets_many_regions(number: int, rng: Random) -> Labels:
    return number if number % 2 else 0, number, rng.randrange(15)


def one_subnet(number: int, _: Random) -> Labels:
    return number, number, 0


def two_halves_that_exclude_each_other(number: int, _: Random) -> Labels:
    """Each rule alone can be kept; together each pick after the sixth takes another raise of a limit."""
    return (0, number, number) if number < 16 else (number, number, "shared")


def crossing(number: int, rng: Random) -> Labels:
    return rng.randrange(4), rng.randrange(8), rng.randrange(16)


ADVERSARIAL = (
    one_operator_everywhere,
    one_operator_is_needed,
    few_subnets_many_regions,
    one_subnet,
    two_halves_that_exclude_each_other,
    crossing,
)


def lookups(pool: list[Candidate], n: int, m: int) -> int:
    before = Counted.lookups[0]
    draw(pool, n, Rules.for_loss_tolerance(m), b"work")
    return Counted.lookups[0] - before


@pytest.mark.parametrize(("n", "m"), [(16, 6), (32, 16)])
@pytest.mark.parametrize("labels", [benign, *ADVERSARIAL])
def test_no_labels_make_a_draw_look_at_more_than_a_few_times_its_candidates(
    labels: Callable[[int, Random], Labels], n: int, m: int
) -> None:
    """With one operator in many regions it was up to 1,500 times."""
    assert 0 < lookups(network(labels), n, m) <= LOOKS_PER_NODE_MAX * NODES


@pytest.mark.parametrize("labels", ADVERSARIAL)
def test_the_specification_gives_the_same_draw_where_labels_are_made_up(labels: Callable[[int, Random], Labels]) -> None:
    pool = network(labels, 50, str)
    rules = Rules.for_loss_tolerance(6)
    chosen, spares = Oracle(pool, 16, {"subnet": 1, "operator": 2, "region": 5}, b"alike").draw(8)
    drawn = draw(pool, 16, rules, b"alike")
    assert drawn.chosen == tuple(c.node_id for c in chosen)
    assert drawn.spares == tuple(c.node_id for c in spares)


def test_one_operator_in_many_regions_is_no_reason_to_bend_a_rule() -> None:
    pool = network(one_operator_everywhere, label=str)
    by_id = {c.node_id: c for c in pool}
    for number in range(5):
        drawn = draw(pool, 16, Rules.for_loss_tolerance(6), b"%d" % number)
        assert drawn.bends == ()
        assert max(Counter(by_id[node].region for node in drawn.chosen).values()) == 5
