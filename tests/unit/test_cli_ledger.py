"""The ledger's commands: what they print, what they refuse, and what real ones do on a real ledger."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dds.apps.cli import exits
from dds.apps.cli.contract import Standing, paying, rent_share
from dds.apps.cli.endow import coverage
from dds.apps.cli.ledger_replay import Copy
from dds.apps.cli.ledger_session import HINTS
from dds.apps.cli.ledger_text import (
    about_tokens,
    duration_text,
    parse_price,
    parse_span,
    ppm_text,
    price_text,
    span_text,
    table,
)
from dds.apps.cli.main import run
from dds.apps.cli.market import estimate
from dds.erasure.geometry import ARCHIVE, STANDARD
from dds.ledger import rent
from dds.ledger.params import Params, devnet_params
from dds.ledger.records import (
    ACCOUNTS,
    CONTRACTS,
    Chain,
    Contract,
    Endowment,
    Lane,
    Node,
    Segment,
    SponsorEntry,
    contract_id,
    number_key,
)
from dds.ledger.records import NODES as NODE_TABLE
from dds.primitives.errors import InputError
from dds.primitives.hashing import sha256
from dds.primitives.ids import id_text
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB, MIB
from dds.storage.home import ClientConfig, Home, write_client_config
from dds.storage.ledger_home import LedgerHome
from dds.storage.ledger_store import BlockRecord
from dds.wire.codec import decode, encode
from dds.wire.ledger import Settle, StripeRun, Transfer, sign_tx
from dds.wire.ledger_api import BlockReply
from tests.ledger_desk import (
    BEGAN_MS,
    CREATOR,
    NETWORK,
    NODES,
    OPERATOR,
    SLOT_BYTES,
    STRANGER,
    LedgerDesk,
    genesis,
    ledger_desk,
)

Capture = pytest.CaptureFixture[str]
HOUR = Params()
TO = id_text(STRANGER.public)
CONTRACT, OTHER, SEGMENT = b"c" * 32, b"o" * 32, b"s" * 32


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def idle_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerDesk]:
    """For commands that change nothing."""
    with ledger_desk(tmp_path_factory.mktemp("idle")) as made:
        yield made


def json_of(capsys: Capture) -> dict[str, Any]:
    """The one object on standard output."""
    (line,) = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert isinstance(made, dict)
    return made


# -- how things are written ---------------------------------------------------------------------------------------------------


def test_spans_are_epochs_or_times_and_rounded_up_to_whole_epochs() -> None:
    assert [parse_span(text, HOUR) for text in ("720", "30d", "12h", "90min", "1 y")] == [720, 720, 12, 2, 8766]
    assert parse_span("1min", devnet_params(0)) == 12
    for text in ("", "0", "0d", "-1", "1.5d", "d", "1 fortnight", "1e9", "٣", "9" * 13):
        with pytest.raises(InputError):
            parse_span(text, HOUR)


@given(st.text(max_size=30))
def test_hostile_spans_and_prices_are_input_errors_or_whole_numbers(text: str) -> None:
    for parse in (parse_span, parse_price):
        with suppress(InputError):
            assert parse(text, HOUR) >= 0


def test_prices_are_the_ledgers_or_tokens_per_tib_and_30_days() -> None:
    assert parse_price("1,325", HOUR) == 1325
    assert parse_price("1 ECHO", HOUR) == 1324  # floored: a limit is never above what was said
    assert parse_price("1.5 echo", HOUR) == 1986
    assert parse_price("1 ECHO", devnet_params(0)) == 1  # the same month has 720 times as many epochs
    for text in ("", "-1", "1.5", "1e3", "1 TOKEN", "0x10", "ECHO"):
        with pytest.raises(InputError):
            parse_price(text, HOUR)


def test_a_price_is_told_as_it_is_and_as_people_compare_it() -> None:
    assert price_text(1325, HOUR) == "1,325 per MiB-epoch (about 1 ECHO per TiB of fragments and 30 d)"
    assert about_tokens(1_234_567_890_123) == "about 1.235 ECHO"
    assert about_tokens(2 * TOKEN) == "2 ECHO"


def test_times_are_told_as_people_tell_time() -> None:
    told = [duration_text(ms) for ms in (0, 5, 5_000, 90_000, 3_600_000, 30 * 86_400_000, 8766 * 3_600_000)]
    assert told == ["0 s", "5 ms", "5 s", "1.5 min", "1 h", "30 d", "1 y"]
    assert (span_text(1, HOUR), span_text(720, HOUR)) == ("1 epoch (1 h)", "720 epochs (30 d)")
    assert [ppm_text(ppm) for ppm in (0, 998_500, 1_000_000, 1)] == ["0 %", "99.85 %", "100 %", "0.0001 %"]


def test_a_table_cuts_nothing_and_takes_no_markup() -> None:
    long = "x" * 300
    head, row = table(("name", "value"), [("[red]a[/red]", long)], right=(1,)).splitlines()
    assert row == f"[red]a[/red]  {long}"
    assert head.split() == ["name", "value"]


# -- what a contract pays -----------------------------------------------------------------------------------------------------


def sponsor(contract: bytes, stripes: int, first: int = 0, end: int = 100) -> SponsorEntry:
    return SponsorEntry(contract, stripes, 1000, first, end, prepaid=77, reserve=7)


def segment(*sponsors: SponsorEntry) -> Segment:
    runs = (StripeRun(2, 10, 6, MIB), StripeRun(1, 1, 6, 4096))
    return Segment(b"r" * 32, b"e" * 32, b"v" * 32, 1000, 6, runs, 0, (), sponsors, 0)


def test_a_stripe_s_rent_is_split_among_those_who_sponsor_it_then() -> None:
    alone = segment(sponsor(CONTRACT, 0b111))
    whole = rent.rent(2 * 16 * MIB + 7 * 4096, 1000, 1)
    assert rent_share(alone, alone.sponsors[0], 5) == whole
    shared = segment(sponsor(CONTRACT, 0b111), sponsor(OTHER, 0b001, first=3, end=50))
    assert rent_share(shared, shared.sponsors[0], 5) == whole - 8 * 1000
    assert rent_share(shared, shared.sponsors[1], 5) == 8 * 1000
    assert [rent_share(shared, shared.sponsors[0], epoch) for epoch in (2, 50)] == [whole, whole]


def test_a_contract_pays_for_its_own_sponsorships_that_have_not_ended() -> None:
    here = segment(sponsor(OTHER, 1), sponsor(CONTRACT, 0b010))
    (one,) = paying(CONTRACT, [(SEGMENT, here), (OTHER, segment(sponsor(CONTRACT, 1, end=9))), (b"x" * 32, None)], 9)
    assert (one.segment, one.stripes, one.fragment_bytes, one.rent) == (SEGMENT, 1, 16 * MIB, 16_000)
    assert (one.prepaid, one.reserve, one.end_epoch) == (77, 7, 100)


def test_how_long_an_escrow_lasts_counts_fee_and_reserve_and_leaves_open_reservations_alone() -> None:
    record = Contract(b"p" * 32, "standard", 10, 6, 720, 2000, escrow=200_000, reserved=21_000)
    pays = paying(CONTRACT, [(SEGMENT, segment(sponsor(CONTRACT, 0b010)))], 0)
    assert Standing(CONTRACT, record, 0, pays).lasts(HOUR) == (200_000 - 21_000) // 17_920
    assert Standing(CONTRACT, record, 0).lasts(HOUR) is None


def test_a_quote_is_what_the_ledger_would_charge_for_those_stripes() -> None:
    chain = Chain(lanes=(Lane(price=2000, reference=1500), Lane(price=900, reference=800)))
    found = estimate(HOUR, chain, GIB, "standard", STANDARD, 720)
    assert found.stored == 102 * 16 * MIB + 16 * 419_456  # 102 full stripes, and 4 MiB in a smaller one
    assert found.quote == rent.quote(HOUR, [found.stored], 2000, 720)
    assert found.gib_month(HOUR) == found.quote.total
    archive = estimate(HOUR, chain, GIB, "archive", ARCHIVE, 720)
    assert (archive.price, archive.reference) == (900, 800)
    assert archive.prices == found.prices == {"standard": 2000, "archive": 900}
    tiny = estimate(HOUR, chain, 1, "standard", STANDARD, 1)
    assert (tiny.stored, tiny.quote.rent) == (7, 1)


def test_coverage_is_told_in_years_and_as_a_share_of_what_lasts_for_ever() -> None:
    record = Contract(b"p" * 32, "standard", 10, 6, 720, 2000, rent_bytes=GIB)
    cost = 1024 * 1500 * 112 // 100
    found = coverage(CONTRACT, record, Endowment(pool=cost * 8766 * 3, given=cost * 8766 * 3), 1500, HOUR)
    assert (found.cost, found.years_tenths) == (cost, 30)
    assert found.coverage_ppm == 16_800  # 3 years x 1.12 of the 200 years' rent that 0.5 % a year asks for
    nothing = coverage(CONTRACT, replace(record, rent_bytes=0), Endowment(pool=5, given=5), 1500, HOUR)
    assert (nothing.years_tenths, nothing.coverage_ppm) == (None, None)


# -- wallets ------------------------------------------------------------------------------------------------------------------


def test_a_new_wallet_is_private_never_shown_and_never_replaced(tmp_path: Path, capsys: Capture) -> None:
    def dds(*argv: str) -> int:
        return run(["--home", str(tmp_path / "home"), *argv])

    assert dds("wallet", "new", "--wallet", "savings") == exits.OK
    said = capsys.readouterr()
    path = tmp_path / "home" / "wallets" / "savings.key"
    seed = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(said.out.strip()) == 52 and seed not in said.out + said.err
    assert dds("wallet", "new", "--wallet", "savings") == exits.BAD_INPUT
    assert path.read_text().strip() == seed
    assert dds("wallet", "new") == exits.OK
    assert dds("wallet", "new") == exits.BAD_INPUT
    capsys.readouterr()
    assert dds("wallet", "list", "--json") == exits.OK
    listed = json_of(capsys)["wallets"]
    assert [entry["name"] for entry in listed] == ["identity", "savings"]
    assert listed[1]["account"] == said.out.strip()


@pytest.mark.parametrize("name", ["../identity", "a/b", "", ".", "-x", "a" * 64, "ä", "a\n"])
def test_a_wallets_name_cannot_leave_its_directory(tmp_path: Path, name: str, capsys: Capture) -> None:
    assert run(["--home", str(tmp_path), "wallet", "new", f"--wallet={name}"]) == exits.BAD_INPUT
    assert not list(tmp_path.rglob("*.key"))


def test_a_wallet_that_others_can_read_is_not_used(desk: LedgerDesk, capsys: Capture) -> None:
    (desk.home.wallets_dir / "operator.key").chmod(0o644)
    assert desk.run("wallet", "show", "--wallet", "operator") == exits.BAD_INPUT
    assert "open to other users" in capsys.readouterr().err
    assert desk.run("wallet", "show", "--wallet", "nobody") == exits.BAD_INPUT
    assert "dds wallet new --wallet nobody" in capsys.readouterr().err


def test_an_account_shows_what_it_has_wherever_it_is(idle_desk: LedgerDesk, capsys: Capture) -> None:
    assert idle_desk.run("wallet", "show", "--json", "operator") == exits.OK
    said = json_of(capsys)
    assert (said["account"], said["exists"]) == (id_text(OPERATOR.public), True)
    assert (said["balance"], said["bond"], said["pools"]) == (500 * TOKEN, 200 * TOKEN, 150 * TOKEN)
    assert said["total"] == 850 * TOKEN
    assert idle_desk.run("wallet", "show", TO) == exits.OK
    out, err = capsys.readouterr()
    assert "0 ECHO" in out and "does not know this account yet" in err


def test_send_moves_what_it_says_from_the_wallet_it_names(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("wallet", "send", TO, "12.5", "--yes", "--json") == exits.OK
    said = json_of(capsys)
    assert (said["amount"], said["height"]) == (12_500_000_000_000, 1)
    assert [(event["name"], event["delta"]) for event in said["events"]] == [
        ("sent", -12.5 * TOKEN),
        ("received", 12.5 * TOKEN),
    ]
    assert desk.run("wallet", "send", id_text(CREATOR.public), "0.5", "--wallet", "operator", "-y") == exits.OK
    balances = [desk.replica.find(ACCOUNTS, key.public) for key in (CREATOR, OPERATOR, STRANGER)]
    assert [account and account.balance for account in balances] == [988 * TOKEN, 499_500_000_000_000, 12_500_000_000_000]


def test_nothing_is_sent_without_a_yes(idle_desk: LedgerDesk, capsys: Capture) -> None:
    assert idle_desk.run("wallet", "send", TO, "1") == exits.BAD_INPUT
    assert "--yes" in capsys.readouterr().err
    assert idle_desk.replica.height == 0


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["wallet", "send", "nobody", "1", "-y"], "nobody"),
        (["wallet", "send", TO[:-1] + "1", "1", "-y"], "account"),
        (["wallet", "send", TO, "1e3", "-y"], "1e3"),
        (["wallet", "send", TO, "0", "-y"], "nothing"),
        (["wallet", "send", id_text(CREATOR.public), "1", "-y"], "come from"),
        (["contract", "set", "standard"], "nothing to change"),
        (["contract", "open", "custom"], "k and m"),
        (["contract", "open", "-k", "3"], "k and m"),
        (["market", "quote", "0"], "size"),
        (["market", "quote", "1GiB", "--class", "golden"], "golden"),
        (["market", "quote", "1GiB", "-k", "4"], "k and m"),
        (["market", "quote", "1GiB", "--epochs", "soon"], "soon"),
        (["stake", "ask", "0"], "nothing to change"),
        (["stake", "bond", "1"], "at least 100 ECHO"),
        (["stake", "fund", "node-03", "1", "-y"], "node-03"),
        (["endow"], "AMOUNT"),
        (["endow", "standard", "1", "--show"], "AMOUNT"),
        (["endow", "--spend"], "AMOUNT"),
        (["explain", "node-03"], "node-03"),
    ],
)
def test_bad_words_are_refused_in_one_line_before_anything_is_sent(
    idle_desk: LedgerDesk, argv: list[str], told: str, capsys: Capture
) -> None:
    assert idle_desk.run(*argv) == exits.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == "" and told in err.splitlines()[0]
    assert idle_desk.replica.height == 0


def test_what_is_not_there_is_not_found(idle_desk: LedgerDesk, capsys: Capture) -> None:
    for argv in (["contract", "show", "standard"], ["stake", "show"], ["stake", "fund", "7", "1", "-y"], ["explain", TO]):
        assert idle_desk.run(*argv) == exits.NOT_FOUND
        assert "hint: " in capsys.readouterr().err


def test_a_refusal_tells_the_rules_reason_and_what_to_do(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("wallet", "send", TO, "5000", "-y", "--json") == exits.UNAVAILABLE
    out, err = capsys.readouterr()
    error = json.loads(err)["error"]
    assert out == "" and (error["code"], error["refusal"]) == ("ledger-refused", "insufficient-balance")
    assert "1,000 ECHO" in error["message"] and error["hint"] == HINTS["insufficient-balance"]


# -- the ledger of a home -----------------------------------------------------------------------------------------------------

ASKING = [["wallet", "show"], ["contract", "list"], ["stake", "show"], ["market", "asks"], ["market", "quote", "1GiB"]]
ASKING += [["endow", "--show"], ["ledger", "status"], ["ledger", "verify"], ["explain", TO]]


@pytest.mark.parametrize("argv", ASKING)
def test_a_home_without_a_ledger_says_how_to_name_one(tmp_path: Path, argv: list[str], capsys: Capture) -> None:
    home = Home.open(tmp_path / "home")
    write_client_config(home.config_file, ClientConfig("n"))
    assert run(["--home", str(home.root), *argv]) == exits.BAD_INPUT
    err = capsys.readouterr().err
    assert "names no ledger" in err and 'ledger = "NODEID@host:port"' in err


def test_the_price_and_the_asks_are_shown_the_cheapest_first(idle_desk: LedgerDesk, capsys: Capture) -> None:
    assert idle_desk.run("market", "asks", "--json", "--limit", "2") == exits.OK
    said = json_of(capsys)
    assert [(node["number"], node["ask_price"]) for node in said["asks"]] == [(2, 1000), (1, 1100)]
    assert (said["more"], said["not_looked_at"]) == (1, 0)
    assert idle_desk.run("market", "asks", "--limit", "1") == exits.OK
    assert "2 more: --limit 3" in capsys.readouterr().err
    assert idle_desk.run("market", "price", "--json") == exits.OK
    lanes = json_of(capsys)["lanes"]
    assert [(name, lane["ceiling"]) for name, lane in lanes.items()] == [("standard", 3 * 1325), ("archive", 3 * 1325)]


def test_a_quote_adds_up(idle_desk: LedgerDesk, capsys: Capture) -> None:
    assert idle_desk.run("market", "quote", "10GiB", "-k", "4", "-m", "2", "--epochs", "60d", "--json") == exits.OK
    said = json_of(capsys)
    due = said["quote"]
    assert (said["class_name"], said["epochs"], said["stored"]) == ("custom", 1440, 15 * GIB)
    assert said["total"] == due["rent"] + due["fee"] + due["reserve"] == rent.quote(HOUR, [15 * GIB], 1325, 1440).total
    assert said["gib_month"] == -(-said["total"] // 20)
    assert idle_desk.run("market", "quote", "10GiB") == exits.OK
    assert "1.60 x the size" in capsys.readouterr().out


def test_status_and_verify_tell_one_supply(desk: LedgerDesk, capsys: Capture) -> None:
    desk.run("wallet", "send", TO, "1", "-y")
    desk.run("wallet", "send", TO, "9999", "-y")
    capsys.readouterr()
    assert desk.run("ledger", "status", "--where", "--json") == exits.OK
    status = json_of(capsys)
    assert (status["engine"], status["height"], status["root"]) == ("embedded", 2, desk.replica.root.hex())
    assert status["supply"]["total"] == sum(status["held"].values()) == 1850 * TOKEN
    assert desk.run("ledger", "verify", "--json") == exits.OK
    verified = json_of(capsys)
    assert (verified["holds"], verified["transactions"], verified["refused"]) == (True, 2, 1)
    assert verified["root"] == status["root"]


def test_a_changed_outcome_is_found_by_verify(desk: LedgerDesk, tmp_path: Path, capsys: Capture) -> None:
    desk.run("wallet", "send", TO, "9999", "-y")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        (raw,) = db.execute("SELECT record FROM blocks WHERE height = 1").fetchone()
        record = replace(decode(raw, BlockRecord), codes=("",))
        db.execute("UPDATE blocks SET record = ? WHERE height = 1", (encode(record),))
    capsys.readouterr()
    assert desk.run("ledger", "verify") == exits.INTEGRITY
    out, err = capsys.readouterr()
    assert "it became 'insufficient-balance', its host said 'done'" in out and "does not hold" in err


def test_a_block_that_gives_another_root_stops_the_replay() -> None:
    copy = Copy(genesis())
    raw = sign_tx(CREATOR, NETWORK, 0, Transfer(STRANGER.public, 1))
    assert not copy.apply(BlockReply(1, BEGAN_MS, b"r" * 32, (raw,), ("",)))
    assert len(copy.problems) == 1 and "the root is" in copy.problems[0]
    assert not Copy(genesis()).apply(BlockReply(2, BEGAN_MS, b"r" * 32, (), ()))


def test_export_writes_every_block_whole_or_nothing(desk: LedgerDesk, tmp_path: Path, capsys: Capture) -> None:
    for _ in range(3):
        desk.run("wallet", "send", TO, "1", "-y")
    target = tmp_path / "blocks.jsonl"
    assert desk.run("ledger", "export", str(target)) == exits.OK
    blocks = [json.loads(line) for line in target.read_text().splitlines()]
    assert [block["height"] for block in blocks] == [1, 2, 3]
    assert blocks[-1]["root"] == desk.replica.root.hex()
    assert desk.run("ledger", "export", str(target)) == exits.BAD_INPUT
    assert desk.run("ledger", "export", str(tmp_path / "no" / "x")) == exits.FAILED
    assert {path.name for path in tmp_path.iterdir() if "blocks" in path.name} == {"blocks.jsonl"}


def test_init_makes_a_ledger_and_connects_the_home_to_it_once(tmp_path: Path, capsys: Capture) -> None:
    def dds(*argv: str) -> int:
        return run(["--home", str(tmp_path), "ledger", *argv])

    assert dds("run") == exits.BAD_INPUT
    assert "dds ledger init" in capsys.readouterr().err
    for bad in (("--fund", "identity"), ("--fund", "nobody=1"), ("--fund", f"{TO}=9000001")):
        assert dds("init", "--network", "own", *bad) == exits.BAD_INPUT
    assert dds("init", "--network", "own", "--fund", f"{TO}=1", "--fund", f"{TO}=2") == exits.BAD_INPUT
    assert dds("init", "--fund", f"{TO}=1") == exits.BAD_INPUT
    assert not (tmp_path / "ledger").exists() and not (tmp_path / "config.toml").exists()
    capsys.readouterr()
    assert dds("init", "--network", "own", "--fund", f"{TO}=1", "--fund", "identity=2.5") == exits.OK
    address = capsys.readouterr().out.strip()
    config = Home.open(tmp_path).client_config()
    assert (config.network, config.ledger) == ("own", address)
    balances = [account.balance for account in LedgerHome(tmp_path / "ledger").genesis().accounts]
    assert balances == [TOKEN, 2_500_000_000_000]
    assert dds("init", "--network", "own", "--fund", f"{TO}=1") == exits.BAD_INPUT
    assert Home.open(tmp_path).client_config().ledger == address


# -- contracts ----------------------------------------------------------------------------------------------------------------


def contract_of(desk: LedgerDesk) -> Contract:
    found = desk.replica.find(CONTRACTS, contract_id(CREATOR.public, "standard"))
    assert found is not None
    return found


def test_a_contract_is_opened_changed_filled_and_emptied(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("contract", "open", "--deposit", "10", "-y") == exits.OK
    identifier = capsys.readouterr().out.splitlines()[0]
    assert identifier == id_text(contract_id(CREATOR.public, "standard"))
    made = contract_of(desk)
    assert (made.escrow, made.term_epochs, made.price_max, made.k, made.m) == (10 * TOKEN, 720, 2 * 1325, 10, 6)
    assert desk.run("contract", "set", "standard", "--term", "60d") == exits.OK
    assert (contract_of(desk).term_epochs, contract_of(desk).price_max) == (1440, 2 * 1325)
    assert desk.run("contract", "topup", identifier, "5", "--wallet", "operator", "-y") == exits.OK
    assert id_text(CREATOR.public) in capsys.readouterr().err  # whose it is, before a stranger pays in
    assert desk.run("contract", "withdraw", "standard", "2") == exits.OK
    assert contract_of(desk).escrow == 13 * TOKEN
    assert desk.run("contract", "withdraw", "standard", "all") == exits.OK
    assert contract_of(desk).escrow == 0
    assert desk.run("contract", "withdraw", "standard", "all") == exits.BAD_INPUT
    capsys.readouterr()
    assert desk.run("explain", identifier, "--json") == exits.OK
    said = json_of(capsys)
    assert (said["kind"], said["balance_change"]) == ("contract", 0)


def test_the_wallets_contracts_are_listed_and_shown(desk: LedgerDesk, capsys: Capture) -> None:
    desk.run("contract", "open", "standard", "--deposit", "3", "-y")
    desk.run("contract", "open", "custom", "-k", "4", "-m", "2", "--price-max", "999")
    capsys.readouterr()
    assert desk.run("contract", "list", "--json") == exits.OK
    listed = json_of(capsys)["contracts"]
    assert [(each["class_name"], each["escrow"], each["price_max"]) for each in listed] == [
        ("standard", 3 * TOKEN, 2650),
        ("custom", 0, 999),
    ]
    assert desk.run("contract", "show", "standard") == exits.OK
    shown = capsys.readouterr().out
    assert "any 10 of 16" in shown and "pays for nothing now" in shown
    assert desk.run("wallet", "show") == exits.OK
    assert "in contracts  3 ECHO" in capsys.readouterr().out
    assert desk.run("contract", "cancel", "standard", "-y") == exits.OK
    capsys.readouterr()
    assert desk.run("contract", "list") == exits.OK
    assert "standard (cancelled)" in capsys.readouterr().out


def test_an_endowment_is_given_shown_and_spent(desk: LedgerDesk, capsys: Capture) -> None:
    desk.run("contract", "open", "standard")
    assert desk.run("endow", "standard", "--show") == exits.NOT_FOUND
    assert desk.run("endow", "standard", "9", "-y") == exits.OK
    assert desk.run("endow", "standard", "1", "--wallet", "operator", "-y") == exits.NOT_FOUND  # it has no such contract
    desk.pass_epochs(1)
    assert desk.run("endow", "standard", "--spend") == exits.OK
    capsys.readouterr()
    assert desk.run("endow", "--show", "--json") == exits.OK
    (found,) = json_of(capsys)["endowments"]
    assert (found["pool"], found["given"], found["spent"], found["years_tenths"]) == (9 * TOKEN, 9 * TOKEN, 0, None)
    assert desk.run("endow", "--show") == exits.OK
    assert "nothing is stored under this contract now" in capsys.readouterr().out


def test_what_is_stored_is_paid_for_shown_and_explained_to_the_last_unit(desk: LedgerDesk, capsys: Capture) -> None:
    desk.run("contract", "open", "custom", "-k", "2", "-m", "1", "--deposit", "1", "--term", "10", "-y")
    desk.store("custom", b"one")
    desk.pass_epochs(1)  # about the first epoch nobody reports: no committee was drawn for it
    for _ in range(3):
        desk.report(0, 1, 2)
    desk.report(0, 2)  # node 1 missed one
    desk.report(0, 1, 2)
    desk.send(CREATOR, Settle([sha256(b"one")]))
    capsys.readouterr()
    assert desk.run("contract", "show", "custom", "--json") == exits.OK
    shown = json_of(capsys)
    (segment,) = shown["paying"]
    assert (segment["segment"], segment["fragment_bytes"]) == (id_text(sha256(b"one")), 6 * SLOT_BYTES)
    assert shown["rent_per_epoch"] == rent.rent(6 * SLOT_BYTES, segment["price"], 1)
    assert 0 < segment["prepaid"] < 10 * shown["rent_per_epoch"]
    assert shown["escrow_lasts_epochs"] > 100_000
    assert desk.run("contract", "show", "custom", "--verbose") == exits.OK
    assert id_text(sha256(b"one")) in capsys.readouterr().out
    assert desk.run("explain", "operator") == exits.OK
    assert "sum of events = balance change, checked" in capsys.readouterr().out
    for number, withheld in ((1, True), (2, False)):
        assert desk.run("explain", id_text(NODES[number].public), "--json") == exits.OK
        told = json_of(capsys)
        names = {total["name"]: total for total in told["totals"]}
        assert told["check"]["holds"] and told["check"]["by_node"] == told["balance_change"] >= names["pay"]["delta"] > 0
        assert ("withheld" in names) is withheld
    assert desk.run("explain", id_text(sha256(b"one"))) == exits.OK
    assert "segment" in capsys.readouterr().out
    assert desk.run("ledger", "verify", "--json") == exits.OK
    verified = json_of(capsys)
    assert verified["holds"] and verified["held"]["prepaid rent"] > 0


# -- operators ----------------------------------------------------------------------------------------------------------------


def node_of(desk: LedgerDesk, number: int) -> Node:
    found = desk.replica.find(NODE_TABLE, number_key(number))
    assert found is not None
    return found


def test_an_account_becomes_an_operator_and_registers_the_homes_node(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("stake", "bond", "150", "--region", "west", "--region", "east", "-y") == exits.OK
    assert "bond 150 ECHO, regions east, west" in capsys.readouterr().out
    assert desk.run("node", "init", "--role", "ssn", "--role", "witness", "--region", "east", "--capacity", "10GiB") == exits.OK
    node_id = capsys.readouterr().out.strip()
    words = ("--ask", "900", "--term", "60d", "--pool", "7", "--payout", "operator", "-y", "--json")
    assert desk.run("stake", "register", *words) == exits.OK
    assert json_of(capsys)["node"] == 3
    node = node_of(desk, 3)
    assert (id_text(node.node_id), node.operator, node.payout) == (node_id, CREATOR.public, OPERATOR.public)
    assert (node.roles, node.region, node.capacity_bytes) == (("ssn", "witness"), "east", 10 * GIB)
    assert (node.ask_price, node.term_epochs_max, node.pool_free) == (900, 1440, 7 * TOKEN)
    assert desk.run("stake", "show", "--json") == exits.OK
    assert json_of(capsys)["bond"] == 150 * TOKEN
    assert desk.run("explain", node_id) == exits.OK
    assert "node-registered" in capsys.readouterr().out
    assert desk.run("stake", "register", "-y") == exits.UNAVAILABLE  # a node stands on the ledger once


def test_a_node_is_funded_drained_asked_for_and_retired_by_number_or_id(desk: LedgerDesk, capsys: Capture) -> None:
    by_operator = ("--wallet", "operator")
    assert desk.run("stake", "fund", "1", "5", "-y", *by_operator) == exits.OK
    assert node_of(desk, 1).pool_free == 55 * TOKEN
    assert desk.run("stake", "drain", id_text(NODES[1].public), "all", *by_operator) == exits.OK
    assert node_of(desk, 1).pool_free == 0
    assert desk.run("stake", "ask", "1", "--price", "1777", *by_operator) == exits.OK
    assert (node_of(desk, 1).ask_price, node_of(desk, 1).capacity_bytes) == (1777, 1 << 40)
    capsys.readouterr()
    assert desk.run("stake", "fund", "1", "5", "-y") == exits.UNAVAILABLE
    assert "belongs to operator" in capsys.readouterr().err
    assert desk.run("stake", "retire", "1", "-y", *by_operator) == exits.OK
    assert desk.run("market", "asks", "--json") == exits.OK
    out = capsys.readouterr().out.splitlines()[-1]
    assert [node["number"] for node in json.loads(out)["asks"]] == [2, 0]


def test_bond_comes_back_after_the_evidence_window_and_not_before(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("stake", "unbond", "50", "--wallet", "operator") == exits.OK
    assert "504 epochs (21 d)" in capsys.readouterr().out
    assert desk.run("stake", "show", "operator") == exits.OK
    assert "50 ECHO, free in 504 epochs (21 d)" in capsys.readouterr().out
    assert desk.run("stake", "release", "--wallet", "operator") == exits.UNAVAILABLE
    desk.pass_epochs(504)
    capsys.readouterr()
    assert desk.run("stake", "release", "--wallet", "operator") == exits.OK
    assert capsys.readouterr().out == "50 ECHO released\n"
    assert desk.run("explain", "operator") == exits.OK
    assert "500 ECHO at genesis + 50 ECHO by events = balance 550 ECHO" in capsys.readouterr().out


# -- explain ------------------------------------------------------------------------------------------------------------------


def test_explain_shows_the_last_events_counts_the_rest_and_adds_up(desk: LedgerDesk, capsys: Capture) -> None:
    for _ in range(4):
        desk.run("wallet", "send", TO, "1", "-y")
    capsys.readouterr()
    assert desk.run("explain", TO, "--limit", "3") == exits.OK
    out = capsys.readouterr().out
    assert "1 more, earlier: --limit 4; the totals are of all 4" in out
    assert "sum of events = balance change, checked: 0 ECHO at genesis + 4 ECHO by events = balance 4 ECHO" in out
    assert desk.run("explain", id_text(CREATOR.public), "--json") == exits.OK
    said = json_of(capsys)
    assert (said["kind"], said["count"], said["more"]) == ("account", 4, 0)
    assert said["check"]["holds"] and said["check"]["at_genesis"] == 1000 * TOKEN
    assert [(total["name"], total["count"], total["delta"]) for total in said["totals"]] == [("sent", 4, -4 * TOKEN)]
    assert desk.run("explain", said["events"][0]["tx"], "--json") == exits.OK
    transaction = json_of(capsys)
    assert (transaction["kind"], [event["name"] for event in transaction["events"]]) == ("transaction", ["sent", "received"])


def test_an_event_that_was_left_out_shows(desk: LedgerDesk, tmp_path: Path, capsys: Capture) -> None:
    for _ in range(2):
        desk.run("wallet", "send", TO, "1", "-y")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("DELETE FROM events WHERE seq = 1")
    capsys.readouterr()
    assert desk.run("explain", id_text(CREATOR.public)) == exits.INTEGRITY
    out, err = capsys.readouterr()
    assert "WRONG: sum of events is not the balance change" in out and "dds ledger verify" in err


def test_a_node_is_explained_by_its_id_with_the_account_that_it_pays(idle_desk: LedgerDesk, capsys: Capture) -> None:
    assert idle_desk.run("explain", id_text(NODES[1].public), "--json") == exits.OK
    said = json_of(capsys)
    assert (said["kind"], said["node"]) == ("node", 1)
    assert (said["check"]["account"], said["check"]["holds"], said["check"]["by_node"]) == (id_text(OPERATOR.public), True, 0)


def test_a_node_of_the_homes_devnet_is_known_by_its_name(desk: LedgerDesk, capsys: Capture) -> None:
    member = {"name": "node-03", "id": id_text(NODES[1].public), "region": "r", "operator": "o", "subnet": "s"}
    plan = {"version": 1, "network": NETWORK, "shape": {}, "members": [member | {"roles": ["ssn"], "address": "127.0.0.1:1"}]}
    desk.home.devnet_dir.mkdir()
    (desk.home.devnet_dir / "devnet.json").write_text(json.dumps(plan))
    assert desk.run("explain", "node-03") == exits.OK
    assert f"node-03 number 1, {id_text(NODES[1].public)}" in capsys.readouterr().out
    assert desk.run("stake", "fund", "node-03", "5", "-y", "--wallet", "operator") == exits.OK
    assert desk.run("explain", "node-04") == exits.BAD_INPUT
    assert "node-03 to node-03" in capsys.readouterr().err
