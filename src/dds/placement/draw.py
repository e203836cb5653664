"""Drawing an ordered list of nodes for a segment: candidates + rules + seed -> who, in which order, and what had to bend.

Decides who is asked, first to last, and which spread rules hold: one fragment per node and per subnet, at most m-1 per region
(any region may vanish), at most max(1, m//3) per operator. When the network is too small the softest rule bends first
(subnet, then operator, then region) and the draw says so; two fragments on one node are never allowed. It does not know
whether a node answers: that is the upload's business. Weighted sampling without replacement by SHA-256(seed || counter) with
rejection, so that anyone can draw again from the same inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dds.primitives.errors import NotEnoughNodes
from dds.primitives.hashing import xof_integers
from dds.primitives.ids import NodeID

SPARES = 8  # drawn beyond n, for nodes that refuse or straggle
WEIGHT_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Candidate:
    node_id: NodeID
    region: str
    operator: str
    subnet: str
    weight: int  # 1..WEIGHT_MAX


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


def draw(candidates: Sequence[Candidate], n: int, rules: Rules, seed: bytes, *, spares: int = SPARES) -> Draw:
    """Draw `n` nodes and up to `spares` more.

    Raises:
        NotEnoughNodes: fewer than `n` distinct candidates.
    """
    pool = sorted({c.node_id: c for c in candidates}.values(), key=lambda c: c.node_id)
    if len(pool) < n:
        raise NotEnoughNodes(
            f"{n} nodes are needed and {len(pool)} are known",
            hint="start more nodes, or store with fewer: --class custom -k K -m M",
            needed=n,
            known=len(pool),
        )
    words = _Words(seed)
    picked: list[Candidate] = []
    caps = {"region": rules.per_region, "operator": rules.per_operator, "subnet": rules.per_subnet}
    limits = dict(caps)
    while len(picked) < n:
        allowed = _allowed(pool, picked, limits)
        if not allowed:
            _relax(limits, pool, picked)
            continue
        picked.append(_pick(allowed, words))
        pool = [c for c in pool if c is not picked[-1]]
    rest: list[NodeID] = []
    while pool and len(rest) < spares:
        # A spare may stand in for any index, so it need only not break what is already chosen when it can be helped.
        preferred = _allowed(pool, picked, limits) or pool
        spare = _pick(preferred, words)
        rest.append(spare.node_id)
        pool = [c for c in pool if c is not spare]
    return Draw(tuple(c.node_id for c in picked), tuple(rest), _bends(picked, caps))


class _Words:
    """Unbiased integers below changing bounds from one seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._count = seed, 0

    def below(self, bound: int) -> int:
        self._count += 1
        stream: Iterator[int] = xof_integers(self._seed + self._count.to_bytes(8, "big"), bound)
        return next(stream)


def _allowed(pool: Sequence[Candidate], picked: Sequence[Candidate], limits: dict[str, int]) -> list[Candidate]:
    used = {rule: Counter(getattr(c, rule) for c in picked) for rule in limits}
    return [c for c in pool if all(used[rule][getattr(c, rule)] < limit for rule, limit in limits.items())]


def _relax(limits: dict[str, int], pool: Sequence[Candidate], picked: Sequence[Candidate]) -> None:
    """Raise by one the softest limit whose raising lets somebody in; all of them where none does alone."""
    for rule in ("subnet", "operator", "region"):
        trial = {**limits, rule: limits[rule] + 1}
        if _allowed(pool, picked, trial):
            limits[rule] += 1
            return
    for rule in limits:
        limits[rule] += 1


def _pick(allowed: Sequence[Candidate], words: _Words) -> Candidate:
    mark = words.below(sum(c.weight for c in allowed))
    for candidate in allowed:
        mark -= candidate.weight
        if mark < 0:
            return candidate
    raise AssertionError("unreachable: the mark lies below the total weight")


def _bends(picked: Sequence[Candidate], caps: dict[str, int]) -> tuple[Bend, ...]:
    bends = []
    for rule, cap in caps.items():
        worst = max(Counter(getattr(c, rule) for c in picked).values())
        if worst > cap:
            bends.append(Bend(rule, cap, worst))
    return tuple(bends)
