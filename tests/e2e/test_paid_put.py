"""Putting content that is paid for, on a devnet with a ledger: quote, escrow, receipts, and the money back."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.ledger.records import SEGMENTS, Segment, SponsorEntry
from dds.primitives.ids import SegmentID, parse_id
from dds.primitives.money import TOKEN
from dds.primitives.units import MIB
from dds.runtime import dedup, network, processes
from dds.runtime.client import open_client
from dds.runtime.ledger_client import open_ledger
from dds.runtime.results import PutOptions, PutResult
from dds.storage.home import Home, load_client_config, write_client_config
from tests.e2e.devnet_cli import Program, running_devnet, running_origin, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("paid")]

CLASS = ("--class", "custom", "-k", "4", "-m", "2")
NODES = 8


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = tmp_path_factory.mktemp("paid") / "home"
    shape = ("--nodes", str(NODES), "--regions", "4", "--operators", "8", "--epoch", "4")
    with running_devnet(home, *shape, "--ledger", "embedded") as program:
        yield program


def wallet(dds: Program) -> dict[str, Any]:
    found: dict[str, Any] = dds.json("wallet", "show")
    return found


def reserved(dds: Program) -> int:
    return sum(contract["reserved"] for contract in dds.json("contract", "list")["contracts"])


def put(dds: Program, path: Path, *options: object) -> dict[str, Any]:
    made: dict[str, Any] = dds.json("put", *CLASS, *options, path)
    return made


def other_home(dds: Program, directory: Path, **changes: Any) -> Program:
    """A home of somebody else on the same network."""
    import dataclasses

    directory.mkdir(mode=0o700)
    config = load_client_config(dds.home / "config.toml")
    write_client_config(directory / "config.toml", dataclasses.replace(config, **changes))
    return Program(directory)


def test_a_put_costs_what_it_says_and_no_more_than_the_quote(dds: Program, tmp_path: Path) -> None:
    before = wallet(dds)
    made = put(dds, write_random(tmp_path / "one", 3_000_000, seed=1))
    payment, after = made["payment"], wallet(dds)
    assert payment["segments"] == 1 and payment["rent"] > 0
    assert payment["fee"] == -(-payment["rent"] // 50) and payment["reserve"] == -(-payment["rent"] // 10)
    spent = payment["rent"] + payment["fee"] + payment["reserve"]
    assert before["total"] - after["total"] == spent
    assert after["escrow"] >= 0 and before["balance"] - after["balance"] == spent + after["escrow"] - before["escrow"]


def test_eight_puts_at_once_in_one_session_all_succeed_and_the_books_add_up(dds: Program, tmp_path: Path) -> None:
    paths = [write_random(tmp_path / f"at-once-{number}", 20_000 + number, seed=100 + number) for number in range(8)]

    async def put_all() -> list[PutResult]:
        async with open_client(Home.open(dds.home)) as client:
            done = await asyncio.gather(*(client.put(path, PutOptions(class_name="custom", k=4, m=2)) for path in paths))
            for path, result in zip(paths, done, strict=True):
                await client.get(result.content, path.with_suffix(".copy"))
            return done

    before = wallet(dds)
    results = asyncio.run(put_all())
    after = wallet(dds)
    payments = [result.payment for result in results if result.payment is not None]
    assert [payment.segments for payment in payments] == [1] * 8
    spent = sum(payment.rent + payment.fee + payment.reserve for payment in payments)
    assert spent > 0 == reserved(dds) and before["total"] - after["total"] == spent
    assert before["balance"] - after["balance"] == spent + after["escrow"] - before["escrow"]
    assert all(same_file(path, path.with_suffix(".copy")) for path in paths)


def test_two_programs_of_one_home_put_at_the_same_time(dds: Program, tmp_path: Path) -> None:
    paths = [write_random(tmp_path / f"side-{number}", 50_000, seed=110 + number) for number in range(3)]
    running = [dds.start("put", *CLASS, path) for path in paths]
    said = [program.communicate(timeout=60)[1] for program in running]
    assert [program.returncode for program in running] == [0] * 3, said
    assert reserved(dds) == 0


def test_the_same_again_is_paid_by_extending_not_by_storing(dds: Program, tmp_path: Path) -> None:
    path = write_random(tmp_path / "again", 2_000_000, seed=2)
    first, second = put(dds, path), put(dds, path)
    assert first["payment"]["segments"] == 1
    assert second["sent_bytes"] == 0 and second["payment"]["segments"] == 0


def test_a_declined_quote_stores_and_costs_nothing(dds: Program, tmp_path: Path) -> None:
    careful = other_home(dds, tmp_path / "careful", accept_quotes=False)
    shutil.copy(dds.home / "identity.key", careful.home / "identity.key")
    before = wallet(dds)
    done = careful.run("put", *CLASS, write_random(tmp_path / "dear", 100_000, seed=3), code=2)
    assert b"quote: at most" in done.stderr and b"--yes" in done.stderr
    assert wallet(dds)["nonce"] == before["nonce"]
    careful.run("put", "--yes", *CLASS, tmp_path / "dear")


def test_a_price_above_the_limit_is_refused_before_anything_is_sent(dds: Program, tmp_path: Path) -> None:
    error = dds.error("put", *CLASS, "--max-price", "0.1", write_random(tmp_path / "cheap", 100_000, seed=4), code=2)
    assert "above your limit" in error["message"]


def test_an_account_without_money_is_told_what_it_lacks(dds: Program, tmp_path: Path) -> None:
    poor = other_home(dds, tmp_path / "poor")
    error = poor.error("put", *CLASS, write_random(tmp_path / "wish", 100_000, seed=5), code=2)
    assert "the account has 0 ECHO" in error["message"] and "wallet" in error["hint"]


def test_nodes_store_nothing_that_nobody_pays_for(dds: Program, tmp_path: Path) -> None:
    free_rider = other_home(dds, tmp_path / "rider", ledger="")
    error = free_rider.error("put", *CLASS, write_random(tmp_path / "ride", 100_000, seed=6), code=4)
    assert error["code"] == "not-enough-nodes"


def test_a_put_that_fails_half_way_gets_its_money_back(dds: Program, tmp_path: Path) -> None:
    before = wallet(dds)
    names = dds.names()
    dds.run("devnet", "kill", *names[: NODES - 4])  # four are left, six are needed
    try:
        dds.run("put", *CLASS, write_random(tmp_path / "lost", 2_000_000, seed=7), code=4)
        after = wallet(dds)
        assert (after["balance"], after["escrow"]) == (before["balance"], before["escrow"])
    finally:
        dds.heal()


def test_a_put_that_is_interrupted_half_way_gets_its_money_back(dds: Program, tmp_path: Path) -> None:
    before = wallet(dds)
    names = dds.names()
    dds.run("devnet", "pause", *names[: NODES - 4])  # connected and silent: the put can but wait
    try:
        running = dds.start("put", *CLASS, write_random(tmp_path / "stopped", 2_000_000, seed=10))
        wait_until(lambda: reserved(dds) > 0, timeout_s=30)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        after = wallet(dds)
        assert running.returncode == 130
        assert (after["balance"], after["escrow"], reserved(dds)) == (before["balance"], before["escrow"], 0)
    finally:
        dds.heal()


def test_what_is_handed_to_the_origin_daemon_is_paid_for_too(dds: Program, tmp_path: Path) -> None:
    dds.run("node", "init", "--role", "origin")
    before = wallet(dds)
    with running_origin(dds) as origin:
        content = dds.text("put", *CLASS, "--ack", "fast", write_random(tmp_path / "fast", 1_000_000, seed=10))
        wait_until(lambda: origin.state_of(content) == "done")
    assert wallet(dds)["total"] < before["total"]


def test_reads_need_no_ledger(dds: Program, tmp_path: Path) -> None:
    path = write_random(tmp_path / "read", 1_000_000, seed=8)
    content = put(dds, path)["content"]
    root = dds.home / "devnet" / "ledger" / "host-0"
    (process,) = processes.find([root]).values()
    processes.kill([process])
    dds.run("get", content, "-o", tmp_path / "copy")
    assert same_file(path, tmp_path / "copy")
    error = dds.error("put", *CLASS, write_random(tmp_path / "later", 1_000, seed=9), code=4)
    assert error["message"].startswith("the ledger cannot be reached")
    dds.run("devnet", "start", *dds.names())  # brings the ledger back too
    assert wallet(dds)["balance"] < 10_000 * TOKEN


def test_reused_chunks_of_another_publisher_are_sponsored_stripe_by_stripe_and_stat_shows_it(
    dds: Program, tmp_path: Path
) -> None:
    """Three stripes of 4 MiB; the second publisher's content begins with chunks of the first, and has 1 MiB of its own."""
    theirs = write_random(tmp_path / "theirs", 12 * MIB, seed=31)
    first = put(dds, theirs)["content"]
    segment = SegmentID(parse_id(dds.json("stat", first)["segments"][0]["segment"]))
    before = sponsors_of(dds, segment)
    reader = other_home(dds, tmp_path / "reader")
    dds.run("wallet", "send", reader.json("wallet", "new")["account"], "1000", "--yes")
    mine = tmp_path / "mine"
    mine.write_bytes(theirs.read_bytes()[: 3 * MIB] + write_random(tmp_path / "own", MIB, seed=32).read_bytes())
    told = asyncio.run(put_with_patience(reader, mine))
    assert told.reused_from_others_bytes == 3 * MIB
    assert told.payment is not None and (told.payment.segments, told.payment.sponsored) == (1, 1)
    (ours,) = before
    after = sponsors_of(dds, segment)
    (added,) = [sponsor for sponsor in after if sponsor.contract != ours.contract]
    assert ours.stripes == 0b1111  # three of the file, and what is left with the index
    assert added.stripes == 0b1001  # the chunks' own, and the one with the segment's index
    stat = dds.json("stat", first)
    assert [part["sponsors"] for part in stat["segments"]] == [2]
    shares = stat["attributed_bytes"] // 3
    assert shares * 0.9 < stat["shared_bytes"] < shares * 1.3  # one stripe of three, and the small one
    assert stat["findings"] == []


def sponsors_of(dds: Program, segment: SegmentID) -> tuple[SponsorEntry, ...]:
    config = load_client_config(dds.home / "config.toml")

    async def ask() -> Segment:
        async with open_ledger(config.ledger, network=config.network) as ledger:
            found = await ledger.find(SEGMENTS, segment)
            assert found is not None
            return found

    return asyncio.run(ask()).sponsors


async def put_with_patience(home: Program, source: Path) -> PutResult:
    """What is found does not depend on how busy this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "FIND_PATIENCE_S", 10.0)
        patch.setattr(dedup, "VET_PATIENCE_S", 10.0)
        patch.setattr(dedup, "LEARN_TIMEOUT_S", 10.0)
        patch.setattr(network, "ANNOUNCING_ENDS_S", 0.0)  # nobody looks for these
        async with open_client(Home.open(home.home)) as client:
            return await client.put(source, PutOptions(class_name="custom", k=4, m=2))


def test_an_explained_put_names_rule_safety_and_cost_and_stores_nothing(dds: Program, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(write_random(tmp_path / "bytes", 300_000, seed=33).read_bytes())
    nonce = wallet(dds)["nonce"]
    (dds.home / "policy.toml").write_text(
        '[[rule]]\nlabel = "films"\ntype = "video/*"\nclass = "hot"\n'
        '[[rule]]\nlabel = "pages"\ntype = "text/html"\nclass = "custom"\nk = 4\nm = 2\n'
    )
    try:
        found = dds.json("put", "--explain", page)
        assert (found["class_name"], found["label"], found["k"], found["m"], found["losses_survived"]) == (
            "custom",
            "pages",
            4,
            2,
            2,
        )
        assert found["passed_over"] == [{"number": 1, "label": "films", "why": "its type is text/html, not video/*"}]
        assert found["loss_chances"][0]["segment"] == pytest.approx(20 * 0.01**3 * 0.99**3 + 15 * 0.01**4 * 0.99**2, rel=1e-3)
        assert found["offer"]["quote"]["rent"] > 0
        assert "independently of the others" in dds.text("put", "--explain", page)
        assert wallet(dds)["nonce"] == nonce
        made = dds.json("put", page)
        assert made["class_name"] == "custom" and "by rule 2 (pages)" in made["notes"][0]
        assert made["payment"]["rent"] <= found["offer"]["quote"]["rent"]
    finally:
        (dds.home / "policy.toml").unlink()
