"""The metrics page is what Prometheus reads."""

from __future__ import annotations

from dds.runtime.metrics import Registry


def test_counters_are_listed_by_their_label_values() -> None:
    registry = Registry()
    requests = registry.counter("dds_requests_total", "Requests.", "route", "status")
    requests.add(1, "GET /b", "200")
    requests.add(2, "GET /a", "404")
    requests.add(1, "GET /b", "200")
    assert registry.render() == (
        "# HELP dds_requests_total Requests.\n"
        "# TYPE dds_requests_total counter\n"
        'dds_requests_total{route="GET /a",status="404"} 2\n'
        'dds_requests_total{route="GET /b",status="200"} 2\n'
    )


def test_a_counter_without_labels_starts_at_zero() -> None:
    registry = Registry()
    registry.counter("dds_failures_total", "Failures.")
    assert registry.render().endswith("dds_failures_total 0\n")


def test_a_gauge_is_read_at_the_scrape_and_may_have_nothing_to_say() -> None:
    registry, value = Registry(), [None, 1.5]
    registry.gauge("dds_progress", "Progress.", lambda: value.pop(0))
    assert registry.render() == "# HELP dds_progress Progress.\n# TYPE dds_progress gauge\n"
    assert registry.render().endswith("dds_progress 1.5\n")


def test_label_values_are_escaped() -> None:
    registry = Registry()
    registry.gauges("dds_x", "X.", "name", lambda: {'a"b\\c\nd': 1})
    assert registry.render().splitlines()[-1] == r'dds_x{name="a\"b\\c\nd"} 1'


def test_histogram_buckets_are_cumulative_and_bounds_are_inclusive() -> None:
    registry = Registry()
    histogram = registry.histogram("dds_seconds", "Seconds.")
    for seconds in (0.0005, 0.004, 99.0):
        histogram.observe(seconds)
    lines = registry.render().splitlines()
    assert 'dds_seconds_bucket{le="0.0005"} 1' in lines
    assert 'dds_seconds_bucket{le="0.0025"} 1' in lines
    assert 'dds_seconds_bucket{le="0.005"} 2' in lines
    assert 'dds_seconds_bucket{le="+Inf"} 3' in lines
    assert lines[-1] == "dds_seconds_count 3"
