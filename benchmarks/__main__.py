"""`make bench`: every benchmark, printed as a table of ratios. `python -m benchmarks codec` runs one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from benchmarks.rows import Row


def _codec() -> Iterable[Row]:
    from benchmarks import codec

    return codec.run()


def _transport() -> Iterable[Row]:
    from benchmarks import transport

    return transport.rows()


def _network() -> Iterable[Row]:
    from benchmarks import network

    return network.run()


def _edge() -> Iterable[Row]:
    from benchmarks import edge

    return edge.run()


def _ledger_abci() -> Iterable[Row]:
    from benchmarks import ledger_abci

    return ledger_abci.run()


def _ledger() -> Iterable[Row]:
    from benchmarks import ledger

    return ledger.run()


def _placement() -> Iterable[Row]:
    from benchmarks import placement

    return placement.run()


def _announce() -> Iterable[Row]:
    from benchmarks import announce

    return announce.run()


SUITES: dict[str, Callable[[], Iterable[Row]]] = {
    "codec": _codec,
    "transport": _transport,
    "network": _network,
    "edge": _edge,
    "ledger-abci": _ledger_abci,
    "ledger": _ledger,
    "placement": _placement,
    "announce": _announce,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    print(f"{'measured':58} {'value':>10}       {'baseline':>10} {'ratio':>7} {'target':>7}")
    for name in names or SUITES:
        for row in SUITES[name]():
            cells = [f"{cell:.3g}" if cell is not None else "" for cell in (row.baseline, row.ratio, row.target)]
            print(f"{row.name:58} {row.value:10.3f} {row.unit:5} {cells[0]:>10} {cells[1]:>7} {cells[2]:>7}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
