"""What a node counts, and the text that Prometheus scrapes.

Decides the metrics' names, labels and buckets. Does not decide when they are read: gauges are callables that run at the scrape,
so an idle node does nothing for them. Labels come from small fixed sets only (route templates, status codes), never from what a
peer sent, so the page stays small whatever strangers do.

Source: Prometheus text exposition format, version 0.0.4.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Counter:
    """A total per combination of label values; it only grows."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help_text, tuple(labels)
        self._totals: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float = 1, *values: str) -> None:
        assert amount >= 0
        assert len(values) == len(self.labels)
        self._totals[values] = self._totals.get(values, 0) + amount

    def value(self, *values: str) -> float:
        return self._totals.get(values, 0)

    def lines(self) -> Iterator[str]:
        for values, total in sorted(self._totals.items()):
            yield _line(self.name, zip(self.labels, values, strict=True), total)


class Sampled:
    """Values that something else keeps, read at the scrape: one per combination of label values, none where there is nothing
    to say."""

    def __init__(
        self, kind: str, name: str, help_text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        self.kind, self.name, self.help, self.labels, self._read = kind, name, help_text, tuple(labels), read

    def lines(self) -> Iterator[str]:
        for values, value in sorted(self._read().items()):
            yield _line(self.name, zip(self.labels, values, strict=True), value)


class Histogram:
    """Durations in seconds, in cumulative buckets. Any thread may observe."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: Sequence[float] = SECONDS_BUCKETS) -> None:
        self.name, self.help, self._bounds = name, help_text, tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, seconds)] += 1
            self._sum += seconds

    def lines(self) -> Iterator[str]:
        running = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            running += count
            yield _line(f"{self.name}_bucket", (("le", _number(bound)),), running)
        yield _line(f"{self.name}_sum", (), self._sum)
        yield _line(f"{self.name}_count", (), running)


M = TypeVar("M", Counter, Sampled, Histogram)


class Registry:
    """The metrics of one daemon, in the order in which they were added."""

    def __init__(self) -> None:
        self._metrics: list[Counter | Sampled | Histogram] = []

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return self._add(Counter(name, help_text, labels))

    def histogram(self, name: str, help_text: str) -> Histogram:
        return self._add(Histogram(name, help_text))

    def gauge(self, name: str, help_text: str, read: Callable[[], float | None]) -> None:
        """A value read at the scrape; None while there is nothing to say."""

        def sample() -> dict[tuple[str, ...], float]:
            value = read()
            return {} if value is None else {(): value}

        self._add(Sampled("gauge", name, help_text, (), sample))

    def gauges(self, name: str, help_text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """One value per value of `label`, read at the scrape."""
        self._add(Sampled("gauge", name, help_text, (label,), lambda: {(key,): value for key, value in read().items()}))

    def totals(
        self, name: str, help_text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """Counters that another module keeps."""
        self._add(Sampled("counter", name, help_text, labels, read))

    def total(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """One counter that another module keeps."""
        self._add(Sampled("counter", name, help_text, (), lambda: {(): read()}))

    def render(self) -> str:
        """The whole page."""
        out: list[str] = []
        for metric in self._metrics:
            out += (f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines())
        return "\n".join(out) + "\n"

    def _add(self, metric: M) -> M:
        assert all(metric.name != known.name for known in self._metrics)
        self._metrics.append(metric)
        return metric


def _line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
