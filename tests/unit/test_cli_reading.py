"""The commands about paying for reads: deposit, withdraw and grant on a real ledger, and what `dds get` says it cost."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.apps.cli import exits
from dds.apps.cli.get import read_grant, summary
from dds.apps.cli.ledger_session import HINTS
from dds.ledger.records import ACCOUNTS, DEPOSITS, DepositEntry
from dds.primitives.cid import cid_of
from dds.primitives.ids import NodeID, id_text
from dds.primitives.money import TOKEN
from dds.primitives.units import MIB
from dds.runtime.results import Culprit, GetResult
from dds.wire.ledger import RedeemVouchers
from dds.wire.vouchers import Voucher, grant_name, open_grant, sign_voucher
from tests.ledger_desk import CREATOR, CREATOR_TOKENS, NETWORK, NODES, STRANGER, LedgerDesk, ledger_desk

Capture = pytest.CaptureFixture[str]
READER = id_text(STRANGER.public)
WITHDRAWAL_EPOCHS = 24


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


def json_of(capsys: Capture) -> dict[str, Any]:
    """The one object on standard output."""
    (line,) = capsys.readouterr().out.splitlines()
    made: dict[str, Any] = json.loads(line)
    return made


def deposit_of(desk: LedgerDesk) -> DepositEntry:
    return desk.replica.find(DEPOSITS, CREATOR.public) or DepositEntry()


def balance(desk: LedgerDesk) -> int:
    found = desk.replica.find(ACCOUNTS, CREATOR.public)
    return found.balance if found else 0


def test_a_deposit_leaves_the_balance_and_shows_in_the_wallet(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("wallet", "deposit", "2.5", "--yes", "--json") == exits.OK
    said = json_of(capsys)
    assert (said["amount"], said["height"]) == (5 * TOKEN // 2, 1)
    assert (deposit_of(desk).amount, balance(desk)) == (5 * TOKEN // 2, (CREATOR_TOKENS * TOKEN) - 5 * TOKEN // 2)
    assert desk.run("wallet", "show", "--json") == exits.OK
    shown = json_of(capsys)
    assert (shown["deposit"], shown["total"]) == (5 * TOKEN // 2, CREATOR_TOKENS * TOKEN)
    assert desk.run("wallet", "deposit", "0.5", "-y") == exits.OK
    assert "0.5 ECHO" in capsys.readouterr().out
    assert deposit_of(desk).amount == 3 * TOKEN


def test_a_deposit_of_more_than_there_is_is_refused(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("wallet", "deposit", "1001", "-y", "--json") == exits.UNAVAILABLE
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["refusal"], error["hint"]) == ("insufficient-balance", HINTS["insufficient-balance"])
    assert deposit_of(desk) == DepositEntry()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["deposit", "1"], "--yes"),
        (["deposit", "0", "-y"], "nothing"),
        (["deposit", "-1", "-y"], "-1"),
        (["withdraw", "0"], "nothing"),
        (["withdraw"], "no deposit"),
        (["grant", "nobody", "1", "-o", "x"], "nobody"),
        (["grant", READER, "0", "-o", "x"], "nothing"),
    ],
)
def test_what_moves_nothing_or_was_not_agreed_to_is_refused_before_anything_is_sent(
    desk: LedgerDesk, argv: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert desk.run("wallet", *argv) == exits.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == "" and told in err
    assert desk.replica.height == 0 and not (tmp_path / "x").exists()


def test_a_withdrawal_is_asked_for_waited_for_and_taken_with_the_same_command(desk: LedgerDesk, capsys: Capture) -> None:
    desk.run("wallet", "deposit", "3", "-y")
    capsys.readouterr()
    assert desk.run("wallet", "withdraw", "1", "--json") == exits.OK
    said = json_of(capsys)
    assert (said["asked"], said["release_epoch"]) == (TOKEN, WITHDRAWAL_EPOCHS)
    assert desk.run("wallet", "withdraw") == exits.OK  # all the rest; it waits anew
    assert (deposit_of(desk).amount, deposit_of(desk).leaving) == (0, 3 * TOKEN)
    capsys.readouterr()
    assert desk.run("wallet", "withdraw") == exits.BAD_INPUT
    assert f"epoch {WITHDRAWAL_EPOCHS}" in capsys.readouterr().err

    desk.pass_epochs(WITHDRAWAL_EPOCHS)
    assert desk.run("wallet", "withdraw", "--json") == exits.OK
    assert json_of(capsys)["taken"] == 3 * TOKEN
    assert (deposit_of(desk), balance(desk)) == (DepositEntry(), CREATOR_TOKENS * TOKEN)
    assert desk.run("wallet", "withdraw") == exits.BAD_INPUT
    assert "no deposit" in capsys.readouterr().err


def test_more_than_the_deposit_cannot_be_asked_back(desk: LedgerDesk, capsys: Capture) -> None:
    desk.run("wallet", "deposit", "1", "-y")
    capsys.readouterr()
    assert desk.run("wallet", "withdraw", "2", "--json") == exits.UNAVAILABLE
    assert json.loads(capsys.readouterr().err)["error"]["refusal"] == "insufficient-deposit"
    assert deposit_of(desk).amount == TOKEN


def test_a_grant_moves_nothing_and_pays_whom_it_names_up_to_its_amount(
    desk: LedgerDesk, tmp_path: Path, capsys: Capture
) -> None:
    desk.run("wallet", "deposit", "1", "-y")
    capsys.readouterr()
    file = tmp_path / "grant"
    assert desk.run("wallet", "grant", READER, "0.25", "-o", str(file), "--epochs", "10", "--json") == exits.OK
    said = json_of(capsys)
    assert (said["reader"], said["amount"], said["expires_epoch"]) == (READER, TOKEN // 4, 10)
    assert desk.replica.height == 1 and deposit_of(desk).amount == TOKEN
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    raw = read_grant(file)  # as dds get --grant does
    grant = open_grant(raw, NETWORK)
    assert (grant.sponsor, grant.grantee, grant.amount) == (CREATOR.public, STRANGER.public, TOKEN // 4)
    node = NODES[0].public
    voucher = Voucher(1, NETWORK, CREATOR.public, node, TOKEN, 0, grant_name(grant))
    desk.send(NODES[0], RedeemVouchers([sign_voucher(STRANGER, voucher)], [raw]))
    assert deposit_of(desk).amount == TOKEN - TOKEN // 4

    assert desk.run("wallet", "grant", READER, "0.25", "-o", str(file)) == exits.BAD_INPUT
    assert "exists already" in capsys.readouterr().err and file.read_bytes() == raw


def test_a_get_says_what_came_from_edges_and_what_was_paid() -> None:
    node = NodeID(NODES[0].public)
    free = GetResult(cid_of(b"x"), "file", 1, 4 * MIB, 5 * MIB, 2.0, 0)
    assert len(summary(free)) == 1 and "every byte verified" in summary(free)[0]
    paid = GetResult(
        cid_of(b"x"), "file", 1, 4 * MIB, 5 * MIB, 2.0, 0, [Culprit(node, "a lie")], edge_bytes=3 * MIB, paid=TOKEN // 10
    )
    _, edge, cost, warning = summary(paid)
    assert edge == "3.0 MiB came from an edge cache"
    assert "0.1 ECHO" in cost and "promised" in cost
    assert id_text(node) in warning
