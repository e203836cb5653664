"""The draw as docs/spec/placement.md describes it, the plain way; shares only its input type with the code under test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction

from dds.placement.draw import Candidate

LABELS = ("subnet", "operator", "region")


def words_below(seed: bytes) -> Iterator[Callable[[int], int]]:
    count = 0
    while True:
        count += 1

        def below(bound: int, number: int = count) -> int:
            for j in range(1000):
                digest = hashlib.sha256(seed + number.to_bytes(8, "big") + j.to_bytes(8, "big")).digest()
                for at in (0, 8, 16, 24):
                    word = int.from_bytes(digest[at : at + 8], "big")
                    if word < 2**64 - 2**64 % bound:
                        return word % bound
            raise AssertionError("a thousand digests without a fair word")

        yield below


def entry_at(entries: list[Candidate], mark: int) -> Candidate:
    for entry in entries:
        mark -= entry.weight
        if mark < 0:
            return entry
    raise AssertionError("the mark lies beyond the list")


def fits(entry: Candidate, held: list[Candidate], limits: dict[str, int]) -> bool:
    counts = {label: sum(getattr(h, label) == getattr(entry, label) for h in held) for label in LABELS}
    return entry not in held and all(counts[label] < limits[label] for label in LABELS)


def first_of_each(entries: list[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for entry in entries:
        alike = {label: sum(getattr(k, label) == getattr(entry, label) for k in kept) for label in LABELS}
        alike["kind"] = sum((k.operator, k.region) == (entry.operator, entry.region) for k in kept)
        if all(alike[label] < most for label, most in {"subnet": 24, "operator": 96, "region": 96, "kind": 8}.items()):
            kept.append(entry)
    return kept


class Oracle:
    """Candidates with distinct ids and weights within bounds."""

    def __init__(self, candidates: list[Candidate], n: int, limits: dict[str, int], seed: bytes) -> None:
        self.full = sorted(candidates, key=lambda c: c.node_id)
        self.left, self.core = self.full, list[Candidate]()
        self.n, self.words = n, words_below(seed)
        self.limits = {label: self.least(label, limits[label]) for label in LABELS}
        bounds, most = self.region_bounds(), self.limits["region"]
        reaching = (a for a in range(1, most) if sum(min(Fraction(room), Fraction(a), bears) for room, bears in bounds) >= n)
        self.aim = next(reaching, most)

    def least(self, label: str, limit: int) -> int:
        names = [getattr(c, label) for c in self.full]
        while sum(min(names.count(name), limit) for name in set(names)) < self.n:
            limit += 1
        return limit

    def region_bounds(self) -> list[tuple[int, Fraction]]:
        """(room, what its weight bears) of each region: twice its share of n where it has several operators, else once."""
        whole = sum(c.weight for c in self.full)
        bounds = []
        for region in {c.region for c in self.full}:
            inside = [c for c in self.full if c.region == region]
            counts = [Counter(getattr(c, label) for c in inside) for label in ("operator", "subnet")]
            rooms: list[int] = [
                sum(min(count, self.limits[label]) for count in counted.values())
                for label, counted in zip(("operator", "subnet"), counts, strict=True)
            ]
            times = 2 if len(counts[0]) > 1 else 1
            bounds.append((min(rooms), Fraction(times * self.n * sum(c.weight for c in inside), whole)))
        return bounds

    def point(self) -> Candidate:
        return entry_at(self.left, next(self.words)(sum(c.weight for c in self.left)))

    def pick(self, allowed: Callable[[Candidate], bool]) -> Candidate | None:
        for _ in range(16):
            if self.left and allowed(entry := self.point()):
                return entry
        self.left = [c for c in self.left if allowed(c)]
        return self.point() if self.left else None

    def make_core(self, taken: list[Candidate]) -> None:
        first = self.full.index(entry_at(self.full, next(self.words)(sum(c.weight for c in self.full))))
        self.core = first_of_each([c for c in self.full[first:] + self.full[:first] if c not in taken])

    def exchange(self, picked: list[Candidate]) -> bool:
        if not self.core:
            self.make_core([])
        for at in range(len(picked)):
            others = picked[:at] + picked[at + 1 :]
            near = [c for c in self.core if c != picked[at] and fits(c, others, self.limits)]
            for first in near:
                for second in near:
                    if fits(second, [*others, first], self.limits):
                        picked[at] = first
                        picked.append(second)
                        return True
        return False

    def fill(self, picked: list[Candidate]) -> bool:
        self.left = self.full
        return self.go_on(picked)

    def go_on(self, picked: list[Candidate]) -> bool:
        while len(picked) < self.n:
            entry = self.pick(lambda c: fits(c, picked, self.limits))
            if entry:
                picked.append(entry)
            elif self.exchange(picked):
                self.left = [c for c in self.core if fits(c, picked, self.limits)]
            else:
                return False
        return True

    def relax(self, picked: list[Candidate]) -> None:
        if all(c in picked for c in self.core):
            self.make_core(picked)
        one_higher = [{**self.limits, label: self.limits[label] + 1} for label in LABELS]
        all_higher = {label: limit + 1 for label, limit in self.limits.items()}
        for raised in (*one_higher, all_higher):
            self.limits = raised
            self.left = [c for c in self.core if fits(c, picked, raised)]
            if self.left:
                return

    def chosen(self) -> list[Candidate]:
        rule = self.limits["region"]
        for limit in range(self.aim, min(self.aim + 2, rule)):
            self.limits["region"] = limit
            for _ in range(max(1, min(4, 2000 // len(self.full)))):
                picked: list[Candidate] = []
                if self.fill(picked):
                    self.limits["region"] = rule
                    return picked
        self.limits["region"] = rule
        furthest: list[Candidate] = []
        for _ in range(max(1, min(16, 8000 // len(self.full)))):
            picked = []
            if self.fill(picked):
                return picked
            if len(picked) > len(furthest):
                furthest = picked
        while len(furthest) < self.n:
            self.relax(furthest)
            self.go_on(furthest)
        return furthest

    def draw(self, spares: int) -> tuple[list[Candidate], list[Candidate]]:
        chosen = self.chosen()
        rest: list[Candidate] = []
        for whoever in (False, True):
            self.left = self.full
            while len(rest) < spares:
                entry = self.pick(lambda c: c not in chosen + rest and (whoever or fits(c, chosen, self.limits)))  # noqa: B023
                if not entry:
                    break
                rest.append(entry)
        return chosen, rest
