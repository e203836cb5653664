"""The ledger's commands: what they print, what they refuse, and what real ones do on a real ledger."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.apps.cli import exits
from dds.apps.cli.main import run
from dds.ledger.records import ACCOUNTS
from dds.primitives.ids import id_text
from dds.primitives.money import TOKEN
from dds.storage.home import ClientConfig, Home, write_client_config
from tests.ledger_desk import CREATOR, NODES, OPERATOR, STRANGER, LedgerDesk, ledger_desk

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


def result_of(capsys: Capture) -> dict[str, Any]:
    made = json.loads(capsys.readouterr().out)
    assert isinstance(made, dict)
    return made


def test_wallet_shows_the_homes_identity(desk: LedgerDesk, capsys: Capture) -> None:
    assert desk.run("wallet", "show") == exits.OK
    out = capsys.readouterr().out
    print(out)
    assert id_text(CREATOR.public) in out and "1,000 ECHO" in out


def test_try(desk: LedgerDesk, capsys: Capture) -> None:
    with capsys.disabled():
        for words in (
            "wallet show",
            "wallet list",
            "wallet show operator",
            f"wallet send {id_text(STRANGER.public)} 12.5 --yes",
            "wallet show -v",
            "wallet send operator 1",
            "wallet send operator 10000 --yes",
            "market asks",
            "market price",
            "stake show --wallet operator",
            "stake show",
            "ledger status",
            "ledger verify",
            "ledger export -",
            "contract list",
            "contract show standard",
            "endow --show",
            "endow standard 3 --yes",
            "explain operator",
            f"explain {id_text(CREATOR.public)}",
            f"explain {id_text(NODES[1].public)}",
            "--json explain operator",
            "--json wallet show",
            "--json stake show operator",
            "--json market price",
            "--json ledger verify",
            "explain node-03",
        ):
            print("$ dds", words)
            print("->", desk.run(*words.split()))
