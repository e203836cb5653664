"""`dds ledger init` and `dds ledger run`: a ledger of one's own, in the home's directory `ledger/`.

Decides what a new ledger begins with: who has money, how long an epoch is. Everything else of it is the defaults of
ledger/params.py; an operator, nodes and contracts come by transactions.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds.apps.cli.ledger_session import account_named
from dds.apps.cli.session import Session, command_hint
from dds.primitives.errors import ConfigError, InputError
from dds.primitives.ids import id_text
from dds.primitives.money import format_tokens, parse_tokens

if TYPE_CHECKING:
    from dds.ledger.genesis import Genesis, GenesisAccount
    from dds.ledger.params import Params
    from dds.storage.home import Home
    from dds.storage.ledger_home import LedgerHome

DAEMON: Final = "dds.runtime.ledger_daemon"


def init(
    session: Session,
    fund: Annotated[
        list[str],
        typer.Option(
            "--fund", metavar="ACCOUNT=AMOUNT", help="Who has what at the start; a wallet's name will do; may be given again."
        ),
    ],
    network: Annotated[str | None, typer.Option(help="Its name. [default: that of config.toml]")] = None,
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP; 0 takes a free one now and keeps it.")] = 0,
    devnet: Annotated[bool, typer.Option("--devnet", help="Epochs of 5 seconds and short waits, to try things.")] = False,
) -> None:
    """Make a ledger in this home and connect the home to it; 'dds ledger run' serves it. Prints its address."""
    from dds.ledger.genesis import GENESIS_VERSION, Genesis
    from dds.runtime.devnet import free_ports
    from dds.storage.ledger_home import LedgerConfig, create_ledger_home
    from dds.wire.discovery import format_address

    home = session.open_home(create=True)
    known = home.client_config() if home.config_file.exists() else None
    name = network or (known.network if known else "")
    if not name:
        raise InputError("which network is the ledger for?", hint="name it with --network, or connect this home first")
    if known is not None and (known.network != name or known.ledger):
        other = known.ledger or f"the network {known.network!r}"
        raise ConfigError(f"{home.root} is connected to {other} already", hint="give the ledger a home of its own")
    genesis = Genesis(GENESIS_VERSION, name, _params(devnet=devnet), _accounts(home, fund))
    _check(genesis)
    config = LedgerConfig(host=host, port=port or free_ports(1)[0])
    made = create_ledger_home(home.root / "ledger", genesis, config)
    address = f"{_host_id(made)}@{format_address(host, config.port)}"
    _connect(home, name, address)
    supply = sum(account.balance for account in genesis.accounts)
    session.result({"ledger": address, "network": name, "home": str(made.root), "supply": supply}, address)
    session.say(
        f"{format_tokens(supply)} in {len(genesis.accounts)} accounts; start it with: {command_hint('ledger run', session)}"
    )


def run(session: Session) -> None:
    """Run this home's ledger until Ctrl-C or SIGTERM; it logs to ledger.log.

    The process is replaced by the daemon, which carries nothing of this command line and keeps the pid.
    """
    made = ledger_host_home(session)
    made.config()  # fails with its hint before the process is another one
    session.say(f"the ledger of {made.genesis().network}, log in {made.log_file}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", DAEMON, "--home", str(made.root)])  # noqa: S606 - our own program


def ledger_host_home(session: Session) -> LedgerHome:
    """The home itself when it is laid out as a ledger host's, else the one inside it.

    Raises:
        ConfigError: there is none.
    """
    from dds.storage.ledger_home import LedgerHome

    home = session.open_home()
    for made in (LedgerHome(home.root), LedgerHome(home.root / "ledger")):
        if made.config_file.exists():
            return made
    raise ConfigError(
        f"there is no ledger in {home.root}", hint="make one: dds ledger init --network NAME --fund ACCOUNT=AMOUNT"
    )


def _accounts(home: Home, fund: list[str]) -> tuple[GenesisAccount, ...]:
    """
    Raises:
        InputError: not ACCOUNT=AMOUNT.
    """
    from dds.ledger.genesis import GenesisAccount

    made = []
    for text in fund:
        account, equals, amount = text.partition("=")
        if not equals:
            raise InputError(f"not ACCOUNT=AMOUNT: {text[:80]!r}", hint="an account's id or a wallet's name, '=' and tokens")
        made.append(GenesisAccount(account_named(home, account), parse_tokens(amount)))
    return tuple(made)


def _params(*, devnet: bool) -> Params:
    import time

    from dds.ledger.params import Params, devnet_params

    now_ms = time.time_ns() // 1_000_000
    return devnet_params(now_ms) if devnet else Params(genesis_ms=now_ms)


def _check(genesis: Genesis) -> None:
    """Apply it once, so that what no ledger could begin with is refused before a file is written.

    Raises:
        ConfigError: an account twice, more money than there may be.
    """
    from dds.ledger.genesis import apply_genesis
    from dds.ledger.state import State

    apply_genesis(State({}), genesis)


def _host_id(made: LedgerHome) -> str:
    from dds.storage.keyfile import load_key

    return id_text(load_key(made.key_file).public)


def _connect(home: Home, network: str, address: str) -> None:
    """Name the ledger in config.toml; what else stands there stays."""
    from dataclasses import replace

    from dds.storage.home import ClientConfig, write_client_config

    known = home.client_config() if home.config_file.exists() else ClientConfig(network)
    write_client_config(home.config_file, replace(known, ledger=address))
