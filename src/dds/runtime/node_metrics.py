"""The metrics page of a node, and what of it every daemon has: names, and where numbers are read (docs/operate/node.md).

Decides names and help texts. Reads other modules' own counters at the scrape; only the time of syncs is measured here, where
the store's file operations pass by.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dds import __version__
from dds.runtime.metrics import Histogram, Registry
from dds.storage.fileops import FileOps
from dds.transport.limits import ServerCounters

if TYPE_CHECKING:
    from dds.runtime.node import Node


class TimedFileOps(FileOps):
    """File operations that note how long each sync takes."""

    def __init__(self, seconds: Histogram) -> None:
        self._seconds = seconds

    def sync(self, fd: int) -> None:
        began = time.perf_counter()
        super().sync(fd)
        self._seconds.observe(time.perf_counter() - began)

    def sync_directory(self, path: Path) -> None:
        began = time.perf_counter()
        super().sync_directory(path)
        self._seconds.observe(time.perf_counter() - began)


def add_node_metrics(node: Node) -> None:
    metrics = node.metrics
    add_request_metrics(metrics, node.server.counters)
    _add_store(node)
    add_process_metrics(metrics)
    metrics.gauges(
        "dds_peers",
        "Known peers by health.",
        "health",
        lambda: {str(health): count for health, count in node.peers.table.counts().items()},
    )
    metrics.gauge("dds_dht_running", "1 while the DHT node runs.", lambda: float(node.dht.running))
    metrics.gauge("dds_announcements", "Announcements that are kept up.", lambda: len(node.announcer))


def add_process_metrics(metrics: Registry) -> None:
    """What every daemon of ours says of itself."""
    metrics.gauges("dds_build_info", "Version of the software.", "version", lambda: {__version__: 1})
    metrics.gauge("dds_process_cpu_seconds", "CPU time used since the start.", time.process_time)
    metrics.gauge("dds_process_resident_bytes", "Resident memory.", _resident_bytes)


def add_request_metrics(metrics: Registry, counters: ServerCounters) -> None:
    """What a peer server counts."""
    metrics.totals(
        "dds_requests_total",
        "Requests answered.",
        ("route", "status"),
        lambda: {(route, str(status)): count for (route, status), count in counters.requests.items()},
    )
    bodies = "Bodies' bytes, without TLS and headers."
    metrics.total("dds_received_bytes_total", bodies, lambda: counters.received_bytes)
    metrics.total("dds_sent_bytes_total", bodies, lambda: counters.sent_bytes)
    metrics.total("dds_connections_accepted_total", "Connections let in.", lambda: counters.connections_accepted)
    metrics.total("dds_connections_refused_total", "Connections over a limit.", lambda: counters.connections_refused)
    metrics.total("dds_connections_displaced_total", "Quiet ones that made room.", lambda: counters.connections_displaced)
    metrics.total("dds_connections_timed_out_total", "Those without a request in time.", lambda: counters.connections_timed_out)
    metrics.total("dds_handshakes_failed_total", "TLS handshakes that failed.", lambda: counters.handshakes_failed)
    metrics.total("dds_transfers_cut_total", "Bodies that came or went too slowly.", lambda: counters.transfers_cut)
    metrics.gauge("dds_connections", "Open connections.", lambda: counters.connections_now)
    metrics.gauge("dds_requests_in_flight", "Requests being answered.", lambda: counters.requests_now)
    metrics.gauge("dds_bodies_bytes", "Memory taken by bodies in flight.", lambda: counters.bodies_bytes_now)


def _add_store(node: Node) -> None:
    metrics = node.metrics
    kinds = ("committed", "staged", "trash", "overhead")
    metrics.gauges(
        "dds_store_bytes",
        "Used space by kind; their sum is what counts against the capacity.",
        "kind",
        lambda: {kind: getattr(node.stats, f"{kind}_bytes") for kind in kinds},
    )
    metrics.gauges(
        "dds_store_fragments",
        "Fragments by state.",
        "state",
        lambda: {kind: getattr(node.stats, f"{kind}_count") for kind in ("committed", "staged", "trash")},
    )
    metrics.gauge("dds_store_holds", "Shares of segments that are held, in the trash or not.", lambda: node.stats.hold_count)
    metrics.gauge("dds_store_capacity_bytes", "The quota.", lambda: node.stats.capacity_bytes)
    metrics.gauge("dds_store_free_bytes", "What is left of the quota.", lambda: node.stats.free_bytes)


def _resident_bytes() -> float | None:
    """Linux only (proc(5)); nothing to say elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
