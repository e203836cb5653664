"""Drawing an ordered list of nodes for a segment: candidates + rules + seed -> who, in which order, and what had to bend.

Decides who is asked, first to last, and which spread rules hold: one fragment per node and per subnet, at most m-1 per region
(any region may vanish), at most max(1, m//3) per operator. Below m-1 the regions share a segment as evenly as their nodes and
their weight allow; that is an aim and no rule. When the network is too small the softest rule bends first (subnet, then
operator, then region) and the draw says so; two fragments on one node are never allowed. It does not know whether a node
answers: that is the upload's business.

Anyone can draw again from the same inputs. Candidates are put in the order of their NodeIDs, each as long as its weight; a
word, SHA-256(seed || counter) reduced without bias, points at one of them, and one that is taken or would break a rule is
passed over for the next word. That is weighted sampling without replacement among those allowed. Picking one by one may lead
into a dead end although an arrangement exists (three rules at once make finding one NP-hard: 3-dimensional matching), so a
dead end is left by exchanging one pick, then by starting anew with the next words, before any rule bends. Dead ends look at a
few candidates of each label and not at all of them, so whoever makes up labels cannot make a draw long.
Source: docs/spec/placement.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate, chain, combinations
from operator import attrgetter
from typing import Final

from dds.primitives.errors import NotEnoughNodes
from dds.primitives.hashing import xof_integers
from dds.primitives.ids import NodeID

SPARES: Final = 8  # drawn beyond n, for nodes that refuse or straggle
WEIGHT_MAX: Final = 1 << 40
RULES: Final = ("subnet", "operator", "region")  # softest first
ATTEMPTS_MAX: Final = 16
LOOKS_MAX: Final = 8_000  # attempts times candidates: more attempts are made only where that is kept
CORE_MAX: Final = (24, 96, 96, 8)  # candidates of one subnet, operator, region, operator in a region that dead ends look at
MISSES_MAX: Final = 16  # words that point at nobody allowed, before the list is cut down to those allowed
EVEN_ATTEMPTS_MAX: Final = 4  # with one limit of the regions that is lower than the rule's
EVEN_LOOKS_MAX: Final = 2_000  # as LOOKS_MAX, with one of those limits
EVEN_STEPS_MAX: Final = 2  # such limits that are tried, from the least on
EVEN_STRETCH: Final = 2  # an even spread counts on a region of several operators for so often its weight, on others for once


@dataclass(frozen=True, slots=True)
class Candidate:
    node_id: NodeID
    region: str
    operator: str
    subnet: str
    weight: int  # clamped to 1..WEIGHT_MAX by the draw


@dataclass(frozen=True, slots=True)
class Rules:
    """Upper bounds of fragments of one segment."""

    per_region: int
    per_operator: int
    per_subnet: int = 1

    @classmethod
    def for_loss_tolerance(cls, m: int) -> Rules:
        return cls(per_region=max(1, m - 1), per_operator=max(1, m // 3))


@dataclass(frozen=True, slots=True)
class Bend:
    """A rule that the network is too small to keep."""

    rule: str  # "subnet", "operator", "region"
    limit: int
    worst: int  # fragments that share the worst label

    def describe(self, m: int) -> str:
        risk = "its loss alone loses data" if self.worst > m else f"its loss leaves {m - self.worst} more losses to survive"
        return f"too few {self.rule}s: {self.worst} fragments share one (rule: at most {self.limit}); {risk}"


@dataclass(frozen=True, slots=True)
class Draw:
    chosen: tuple[NodeID, ...]  # by fragment index
    spares: tuple[NodeID, ...]  # in the order they are to be asked
    bends: tuple[Bend, ...]
    region_aim: int = 0  # an even spread: the least that the fullest region could have to hold
    region_limit: int = 0  # what a region might hold when it was drawn; more than the aim where none was found for it


def draw(
    candidates: Sequence[Candidate],
    n: int,
    rules: Rules,
    seed: bytes,
    *,
    spares: int = SPARES,
    held: Sequence[Candidate] = (),
) -> Draw:
    """Draw `n` nodes and up to `spares` more. The candidates' order does not matter; a node counts once.

    `held` have fragments of the segment already: they are not drawn, and count in every limit.

    Raises:
        NotEnoughNodes: fewer than `n` distinct candidates.
    """
    pool = _canonical(candidates, {c.node_id for c in held})
    if len(pool) < n:
        raise NotEnoughNodes(
            f"{n} nodes are needed and {len(pool)} are known",
            hint="start more nodes, or store with fewer: --class custom -k K -m M",
            needed=n,
            known=len(pool),
        )
    urn = _Urn(pool, _Words(seed))
    caps = {"subnet": rules.per_subnet, "operator": rules.per_operator, "region": rules.per_region}
    limits = {rule: _least_limit(pool, held, rule, cap, n) for rule, cap in caps.items()}
    aim = _even_aim(urn.everyone, urn.weights, held, limits, n)
    hand = _evenly(n, limits, aim, held, urn) or _arrange(n, limits, held, urn)
    region_limit = hand.limits["region"]
    hand.limit("region", max(region_limit, limits["region"]))  # spares need not be even
    chosen = tuple(hand.picked)
    rest: list[NodeID] = []
    for fits, fitting in ((hand.allows, hand.allowed), (hand.is_free, hand.free)):
        # A spare may stand in for any index, so it breaks nothing of what is already chosen where that can be helped.
        urn.refill()
        while len(rest) < spares and (spare := urn.pick(fits, fitting)):
            hand.taken.add(spare.node_id)
            rest.append(spare.node_id)
    return Draw(tuple(c.node_id for c in chosen), tuple(rest), _bends([*held, *chosen], caps), aim, region_limit)


def _canonical(candidates: Sequence[Candidate], held: Set[NodeID]) -> list[Candidate]:
    """One entry a node, in NodeID order; of several the least by region, operator, subnet, weight."""
    by_id = {c.node_id: c for c in candidates if c.node_id not in held}
    if len(by_id) < len(candidates):  # told twice, or held
        for c in candidates:
            if c.node_id in by_id and _details(c) < _details(by_id[c.node_id]):
                by_id[c.node_id] = c
    return sorted(by_id.values(), key=attrgetter("node_id"))


def _details(c: Candidate) -> tuple[str, str, str, int]:
    return c.region, c.operator, c.subnet, c.weight


def _least_limit(pool: Sequence[Candidate], held: Sequence[Candidate], rule: str, cap: int, n: int) -> int:
    """The least bound on this rule alone, `cap` or above, under which `n` of the pool can be chosen."""
    used = _label_counts(held, rule)
    if _holds(pool, rule, cap, used, n):
        return cap
    sizes, last = _label_counts(pool, rule), n + max(used.values(), default=0)
    limits = range(cap + 1, last)
    return next((at for at in limits if sum(_room(size, at, used[of]) for of, size in sizes.items()) >= n), max(cap, last))


def _holds(pool: Sequence[Candidate], rule: str, cap: int, used: Counter[str], n: int) -> bool:
    """Whether `n` of the pool can be chosen under this rule alone; in a large network the first few say so."""
    label_of, counts, left = attrgetter(rule), dict(used), n
    for c in pool:
        if left <= 0:
            break
        label = label_of(c)
        if counts.get(label, 0) < cap:
            counts[label] = counts.get(label, 0) + 1
            left -= 1
    return left <= 0


def _room(size: int, limit: int, used: int) -> int:
    return max(0, min(size, limit - used))


def _label_counts(nodes: Sequence[Candidate], rule: str) -> Counter[str]:
    return Counter(map(attrgetter(rule), nodes))


def _even_aim(
    pool: Sequence[Candidate], each_weight: Sequence[int], held: Sequence[Candidate], limits: dict[str, int], n: int
) -> int:
    """The least limit of the regions under which they could hold `n` more, none of them drawn far beyond its weight.

    Were a region counted on for whatever it has, one operator that says "here is another" would be in every segment.
    """
    weights: defaultdict[str, int] = defaultdict(int)
    operator_of: dict[str, str] = {}
    shared: set[str] = set()
    for c, weight in zip(pool, each_weight, strict=True):
        weights[c.region] += weight
        if operator_of.setdefault(c.region, c.operator) != c.operator:
            shared.add(c.region)
    total, used = sum(weights.values()), _label_counts(held, "region")
    rooms = _region_rooms(pool, limits)

    bears = {region: n * weight * (EVEN_STRETCH if region in shared else 1) for region, weight in weights.items()}
    reached, growing = 0, list(rooms)
    for limit in range(1, limits["region"]):
        counts = {region: min(_room(rooms[region], limit, used[region]) * total, bears[region]) for region in growing}
        # Few go on: what a region bears is its share of the weight, and a higher limit adds nothing to what is borne.
        growing = [region for region in growing if limit < rooms[region] + used[region] and counts[region] < bears[region]]
        if reached + sum(counts.values()) >= n * total:
            return limit
        reached += sum(counts.values()) - sum(counts[region] for region in growing)
    return limits["region"]


def _region_rooms(pool: Sequence[Candidate], limits: dict[str, int]) -> dict[str, int]:
    """How many each region could hold for its operators and subnets, each of the two looked at alone: an upper bound.

    Counted as far as the regions' own limit: no more is asked for, and in a large network the first few fill it.
    """
    rooms: dict[str, int] = {}
    for rule in ("operator", "subnet"):
        label_of, limit, most = attrgetter(rule), limits[rule], limits["region"]
        inside: dict[str, int] = {}
        counts: dict[tuple[str, str], int] = {}
        for c in pool:
            if (room := inside.get(c.region, 0)) < most and (count := counts.get(kind := (c.region, label_of(c)), 0)) < limit:
                counts[kind] = count + 1
                inside[c.region] = room + 1
        rooms = {region: min(room, rooms.get(region, room)) for region, room in inside.items()}
    return rooms


class _Words:
    """Unbiased integers below changing bounds from one seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._count = seed, 0

    def below(self, bound: int) -> int:
        self._count += 1
        stream: Iterator[int] = xof_integers(self._seed + self._count.to_bytes(8, "big"), bound)
        return next(stream)


class _Urn:
    """Weighted draws by rejection. What is not allowed once must not be allowed later, until the urn is refilled."""

    def __init__(self, everyone: Sequence[Candidate], words: _Words) -> None:
        self.everyone, self._words = everyone, words
        self.weights = _weights(everyone)
        self._left, self._sums = self._all = everyone, list(accumulate(self.weights))
        self._core: list[Candidate] = []

    def refill(self) -> None:
        self._left, self._sums = self._all

    def hold(self, left: Sequence[Candidate]) -> None:
        """Draw from these alone, until the next refill."""
        self._left, self._sums = left, list(accumulate(_weights(left)))

    def pick(
        self, fits: Callable[[Candidate], bool], fitting: Callable[[Sequence[Candidate]], list[Candidate]]
    ) -> Candidate | None:
        for _ in range(MISSES_MAX if self._left else 0):
            candidate = self._point()
            if fits(candidate):
                return candidate
        if self._left:
            self.hold(fitting(self._left))
        return self._point() if self._left else None

    def core(self) -> list[Candidate]:
        """Those whom dead ends look at."""
        return self._core or self.renew_core(frozenset())

    def renew_core(self, taken: Set[NodeID]) -> list[Candidate]:
        """From where a word points on: whoever could choose its NodeID must not come first in every dead end."""
        self.refill()
        first = bisect_right(self._sums, self._words.below(self._sums[-1]))
        self._core = _few_of_each(c for c in (*self.everyone[first:], *self.everyone[:first]) if c.node_id not in taken)
        return self._core

    def _point(self) -> Candidate:
        return self._left[bisect_right(self._sums, self._words.below(self._sums[-1]))]


def _weights(pool: Sequence[Candidate]) -> list[int]:
    return [c.weight if 0 < c.weight <= WEIGHT_MAX else min(max(c.weight, 1), WEIGHT_MAX) for c in pool]


def _few_of_each(pool: Iterable[Candidate]) -> list[Candidate]:
    """The first of each label and of each operator's region, as far as the core goes.

    Where nobody is allowed each of them has a label that is full, and n nodes fill few labels: so the core is small then.
    """
    kept: tuple[defaultdict[str, int], ...] = tuple(defaultdict(int) for _ in CORE_MAX)
    enough: tuple[set[str], ...] = tuple(set() for _ in CORE_MAX)
    subnets, operators, regions, kinds = enough
    core = []
    for c in pool:
        if c.region in regions or c.operator in operators or c.subnet in subnets:
            continue
        kind = f"{len(c.region)} {c.region}{c.operator}"
        if kind in kinds:
            continue
        core.append(c)
        for counts, label, most, done in zip(kept, (c.subnet, c.operator, c.region, kind), CORE_MAX, enough, strict=True):
            counts[label] += 1
            if counts[label] >= most:
                done.add(label)
    return core


class _Hand:
    """What is picked so far, and what the limits still allow."""

    def __init__(self, limits: dict[str, int], held: Sequence[Candidate]) -> None:
        self.picked: list[Candidate] = []
        self.taken: set[NodeID] = set()
        self.limits = dict(limits)
        self._used: dict[str, Counter[str]] = {rule: _label_counts(held, rule) for rule in RULES}
        self._full: dict[str, set[str]] = {}
        for rule in RULES:
            self.limit(rule, limits[rule])

    def limit(self, rule: str, most: int) -> None:
        self.limits[rule] = most
        self._full[rule] = {label for label, used in self._used[rule].items() if used >= most}

    def take(self, candidate: Candidate) -> None:
        self.picked.append(candidate)
        self.put_in(candidate)

    def put_in(self, candidate: Candidate) -> None:
        self.taken.add(candidate.node_id)
        for rule in RULES:
            label = getattr(candidate, rule)
            self._used[rule][label] += 1
            if self._used[rule][label] >= self.limits[rule]:
                self._full[rule].add(label)

    def put_back(self, candidate: Candidate) -> None:
        self.taken.remove(candidate.node_id)
        for rule in RULES:
            label = getattr(candidate, rule)
            self._used[rule][label] -= 1
            if self._used[rule][label] < self.limits[rule]:
                self._full[rule].discard(label)

    def is_free(self, c: Candidate) -> bool:
        return c.node_id not in self.taken

    def free(self, pool: Sequence[Candidate]) -> list[Candidate]:
        return [c for c in pool if c.node_id not in self.taken]

    def full_labels(self, c: Candidate) -> tuple[tuple[str, str], ...]:
        """Its labels (rule, label) that have room for no more."""
        return tuple((rule, label) for rule in RULES if (label := getattr(c, rule)) in self._full[rule])

    def allows(self, c: Candidate) -> bool:
        return bool(self.allowed((c,)))

    def allowed(self, pool: Sequence[Candidate]) -> list[Candidate]:
        subnets, operators, regions, taken = *(self._full[rule] for rule in RULES), self.taken
        return [
            c
            for c in pool
            if c.region not in regions and c.operator not in operators and c.subnet not in subnets and c.node_id not in taken
        ]


def _evenly(n: int, limits: dict[str, int], aim: int, held: Sequence[Candidate], urn: _Urn) -> _Hand | None:
    """`n` picks within lower limits of the regions, the least first, where a few attempts find them."""
    for region in range(aim, min(aim + EVEN_STEPS_MAX, limits["region"])):
        for _ in range(_attempts(EVEN_ATTEMPTS_MAX, EVEN_LOOKS_MAX, urn)):
            hand = _Hand({**limits, "region": region}, held)
            if _fill(hand, n, urn):
                return hand
    return None


def _arrange(n: int, limits: dict[str, int], held: Sequence[Candidate], urn: _Urn) -> _Hand:
    """`n` picks within the limits where one of a few attempts finds them; else the fullest attempt, rules relaxed."""
    best = _Hand(limits, held)
    for _ in range(_attempts(ATTEMPTS_MAX, LOOKS_MAX, urn)):
        hand = _Hand(limits, held)
        if _fill(hand, n, urn):
            return hand
        best = max(best, hand, key=lambda each: len(each.picked))
    while len(best.picked) < n:
        _relax(best, urn)
        _go_on(best, n, urn)
    return best


def _attempts(most: int, looks: int, urn: _Urn) -> int:
    """Each attempt may look at everyone: fewer of them in a large network, where each is likelier to succeed."""
    return max(1, min(most, looks // max(1, len(urn.everyone))))


def _fill(hand: _Hand, n: int, urn: _Urn) -> bool:
    """Pick until there are `n`; False at a dead end that no exchange leaves."""
    urn.refill()
    return _go_on(hand, n, urn)


def _go_on(hand: _Hand, n: int, urn: _Urn) -> bool:
    while len(hand.picked) < n:
        candidate = urn.pick(hand.allows, hand.allowed)
        if candidate is not None:
            hand.take(candidate)
        elif not _exchange(hand, urn.core()):
            return False
        else:
            urn.hold(hand.allowed(urn.core()))  # the exchange may allow again what was not allowed
    return True


def _exchange(hand: _Hand, core: Sequence[Candidate]) -> bool:
    """Leave a dead end: give up one pick for two others, the first two of the core that fit together then."""
    held_off = _HeldOff(hand, core)
    for at, old in enumerate(hand.picked):
        full = hand.full_labels(old)
        hand.put_back(old)
        pair = _pair(hand, held_off.by(set(full) - set(hand.full_labels(old))))
        if pair:
            hand.picked[at] = pair[0]
            hand.picked.append(pair[1])
            return True
        hand.put_in(old)
    return False


class _HeldOff:
    """A core by the full labels that keep each one out: of those kept out by the same, as few as tell whether a pair fits.

    Two whom different labels keep out can only be in each other's way by a label that neither is kept out by. So whatever
    stands for one of them, the first of the others will do, or the first that differs from it in that label.
    """

    def __init__(self, hand: _Hand, core: Sequence[Candidate]) -> None:
        self._by_labels: defaultdict[tuple[tuple[str, str], ...], dict[str, tuple[int, Candidate]]] = defaultdict(dict)
        for place, c in enumerate(core):
            if hand.is_free(c):
                same = self._by_labels[hand.full_labels(c)]
                first = same.setdefault("", (place, c))[1]
                for rule in RULES:
                    if rule not in same and getattr(c, rule) != getattr(first, rule):
                        same[rule] = place, c

    def by(self, labels: Set[tuple[str, str]]) -> list[Candidate]:
        """In the core's order, those whom only some of these keep out."""
        if len(labels) < 2:
            return []  # two would take the place of the one label
        ordered = sorted(labels, key=lambda each: RULES.index(each[0]))
        subsets = chain.from_iterable(combinations(ordered, size) for size in range(1, len(ordered) + 1))
        found = {place: c for each in subsets if each in self._by_labels for place, c in self._by_labels[each].values()}
        return [found[place] for place in sorted(found)]


def _pair(hand: _Hand, near: Sequence[Candidate]) -> tuple[Candidate, Candidate] | None:
    """The first two that fit together; both are counted as used when found."""
    for first in near:
        hand.put_in(first)
        second = next(iter(hand.allowed(near)), None)
        if second:
            hand.put_in(second)
            return first, second
        hand.put_back(first)
    return None


def _relax(hand: _Hand, urn: _Urn) -> None:
    """Raise by one the softest limit whose raising lets somebody in; all of them where none does alone."""
    core = urn.core()
    if not hand.free(core):
        core = urn.renew_core(hand.taken)
    for rule in RULES:
        hand.limit(rule, hand.limits[rule] + 1)
        if let_in := hand.allowed(core):
            urn.hold(let_in)
            return
        hand.limit(rule, hand.limits[rule] - 1)
    for rule in RULES:
        hand.limit(rule, hand.limits[rule] + 1)
    urn.hold(hand.allowed(core))


def _bends(chosen: Sequence[Candidate], caps: dict[str, int]) -> tuple[Bend, ...]:
    worst = {rule: max(Counter(getattr(c, rule) for c in chosen).values(), default=0) for rule in caps}
    return tuple(Bend(rule, cap, worst[rule]) for rule, cap in caps.items() if worst[rule] > cap)
