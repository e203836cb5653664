"""What `dds doctor --node` says of a node, and with which code it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from dds.apps.cli import exits
from dds.apps.cli.checks import OUTSIDE, SERVES, Check, Grade, exit_code_of
from dds.apps.cli.doctor_node import (
    _outside_verdict,
    check_capacity,
    check_clock_skew,
    check_disk_of,
    check_key_file,
    check_speed,
    observed,
)
from dds.apps.cli.main import run
from dds.apps.cli.requirements import Requirements
from dds.apps.cli.standing_text import standing_checks, vetting_text
from dds.ledger.params import Params
from dds.ledger.records import Node, NodeStatus, Operator, Standing
from dds.primitives.ids import id_text
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB, MIB
from dds.storage.home import NodeConfig, NodeHome
from dds.wire.dialback import AddressSeen, DialbackReply, Observation, SelfTestReply

PARAMS = Params(vetted_audits=10, vetted_epochs=20)
NODE = Node(3, b"n" * 32, b"o" * 32, b"p" * 32, ("ssn",), "r", "s", 100, GIB, ask_price=5, pool_free=TOKEN)
OPERATOR = Operator(bond=100 * TOKEN)
REACHED = AddressSeen("127.0.0.1:1", "", 81_000, 40 * MIB)
SHUT = AddressSeen("127.0.0.1:1", "no connection in time", 0, 0)
OBSERVER = bytes(range(32))


def seen(*addresses: AddressSeen, health: str = "healthy", problem: str = "") -> Observation:
    reply = None if problem else DialbackReply(addresses, 0, health, 0, 1, 0)
    return Observation(OBSERVER, "region-2", "operator-7", problem, 0, reply)


def graded(
    node: Node = NODE, standing: Standing | None = None, operator: Operator | None = OPERATOR, *, epoch: int = 130
) -> dict[str, Grade]:
    return {check.name: check.grade for check in standing_checks(node, standing, operator, GIB, PARAMS, epoch, 5)}


def test_a_node_that_lacks_nothing_passes_every_check_of_its_standing() -> None:
    assert set(graded(standing=Standing(passed=10)).values()) == {"ok"}


def test_every_shortcoming_on_the_ledger_is_named() -> None:
    windows = Standing(windows=0b0010, windows_judged=0b11110, window_epoch=120)  # one of four finished ones had a pass
    assert graded(standing=Standing(passed=9))["vetting"] == "warn"
    assert graded(standing=windows)["uptime"] == "fail"
    assert graded(standing=Standing(missed_in_row=2, judged=5))["score"] == "warn"
    assert graded(operator=None)["bond"] == graded(operator=Operator())["bond"] == "fail"
    assert graded(operator=replace(OPERATOR, jailed_until=131))["bond"] == "fail"
    assert graded(operator=replace(OPERATOR, jailed_until=130))["bond"] == "ok"
    assert graded(operator=Operator(bond=99 * TOKEN))["bond"] == "warn"
    assert graded(replace(NODE, pool_free=0))["pool"] == "fail"
    assert graded(replace(NODE, ask_price=6))["ask"] == "warn"
    assert graded(replace(NODE, status=int(NodeStatus.RETIRING)))["ledger"] == "warn"
    assert graded(replace(NODE, status=int(NodeStatus.FAULTED), fault_reason="lied"))["ledger"] == "fail"


def test_a_newcomer_is_told_how_far_it_is() -> None:
    assert vetting_text(NODE, None, PARAMS, 103) == "0 of 10 audits, 3 of 20 epochs"
    assert vetting_text(NODE, Standing(passed=25), PARAMS, 119) == "10 of 10 audits, 19 of 20 epochs"
    assert vetting_text(NODE, Standing(passed=10), PARAMS, 120) == "vetted"
    assert vetting_text(replace(NODE, genesis=True), None, PARAMS, 100) == "vetted"


def test_what_an_observer_saw_is_one_line() -> None:
    names = {id_text(OBSERVER): "node-07"}
    assert observed(seen(SHUT, REACHED), names).found == "seen from region-2 by node-07: reachable, 81 ms, 40.0 MiB/s, healthy"
    assert "no connection in time" in observed(seen(SHUT), names).found
    assert "no whole answer" in observed(seen(problem="no whole answer"), {}).found
    assert observed(seen(REACHED, health=""), names).found.endswith("not known there yet")
    assert [observed(each, names).grade for each in (seen(REACHED), seen(SHUT), seen(problem="x"))] == ["ok", "warn", "warn"]


@pytest.mark.parametrize(
    ("observations", "grades"),
    [
        ((seen(REACHED), seen(SHUT)), []),  # one observer's trouble may be its own
        ((seen(SHUT), seen(problem="gone")), ["fail"]),
        ((seen(problem="gone"),), ["fail"]),
        ((seen(),), ["fail"]),  # a record without any address
        ((), ["warn"]),
    ],
)
def test_a_node_that_nobody_could_reach_fails(observations: tuple[Observation, ...], grades: list[str]) -> None:
    reply = SelfTestReply(len(observations), observations)
    found = list(_outside_verdict(reply, [observed(each, {}) for each in observations]))
    assert [check.grade for check in found] == grades


def test_clock_and_speed_are_compared_with_the_others() -> None:
    assert [check.grade for check in check_clock_skew([-90_000, 100, 200])] == ["ok"]  # one liar moves no middle
    assert [check.grade for check in check_clock_skew([5_000, 5_100])] == ["warn"]
    behind = next(iter(check_clock_skew([90_000, 90_000, 0])))
    assert (behind.grade, "behind" in behind.found) == ("fail", True)
    assert list(check_clock_skew([])) == []
    quick = SelfTestReply(1, (seen(REACHED),))
    assert [check.grade for check in check_speed(quick, Requirements(GIB, 40 * MIB))] == ["ok"]
    assert [check.grade for check in check_speed(quick, Requirements(GIB, 40 * MIB + 1))] == ["fail"]
    assert list(check_speed(SelfTestReply(1, (seen(SHUT),)), Requirements())) == []


def test_space_bandwidth_and_key_are_held_against_what_is_required(tmp_path: Path) -> None:
    least = Requirements(GIB, MIB)
    small = NodeConfig("n", "net", capacity_bytes=GIB - 1, upload_bytes_per_s=MIB - 1, download_bytes_per_s=MIB)
    assert [(check.name, check.grade) for check in check_capacity(small, least)] == [
        ("capacity", "fail"),
        ("bandwidth", "fail"),
    ]
    edge = NodeConfig("n", "net", roles=("ecn",), capacity_bytes=1)
    assert list(check_capacity(edge, least)) == []
    files = NodeHome(tmp_path)
    huge = NodeConfig("n", "net", capacity_bytes=1 << 60)
    assert [check.grade for check in check_disk_of(files, huge, None)] == ["fail"]
    assert [check.grade for check in check_disk_of(files, huge, {"free_bytes": 1})] == ["ok"]
    key = tmp_path / "node.key"
    key.touch(mode=0o600)
    assert check_key_file(key).grade == "ok"
    key.chmod(0o640)
    assert check_key_file(key).grade == "fail"


def test_the_exit_code_tells_a_node_that_is_not_reached_from_one_that_lacks_something() -> None:
    assert exit_code_of([Check("disk", "ok", ""), Check(OUTSIDE, "warn", "")]) == exits.OK
    assert exit_code_of([Check(SERVES, "fail", ""), Check(OUTSIDE, "fail", "")]) == exits.UNAVAILABLE
    assert exit_code_of([Check(SERVES, "fail", ""), Check("disk", "fail", "")]) == exits.FAILED


def test_a_directory_without_a_node_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(tmp_path), "doctor", "--node", str(tmp_path / "nowhere")]) == exits.BAD_INPUT
    assert "no node" in capsys.readouterr().err
