"""What the ledger's commands share: the home's ledger, its wallets, naming accounts, nodes and contracts, sending.

A wallet is a key; its public half is the account. The home's identity is the account unless --wallet names another. What is
named on the command line is looked up before anything is signed; what a transaction did is told from the ledger's own answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from dds.apps.cli.session import Session, command_hint, fields, plain, run_async
from dds.primitives.errors import ConfigError, InputError, LedgerRefused, NotFoundError
from dds.primitives.ids import ID_TEXT_CHARS, id_text, parse_id

if TYPE_CHECKING:
    from dds.ledger.events import Event
    from dds.ledger.params import Params
    from dds.ledger.records import Chain, Contract, Node, Table, V
    from dds.primitives.keys import SigningKey
    from dds.runtime.ledger_client import LedgerClient, TxDone
    from dds.storage.home import Home
    from dds.wire.ledger import AnyBody

T = TypeVar("T")
WALLET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
IDENTITY: Final = "identity"  # how the home's own key is called where a wallet is named
LEDGER_HINT: Final = "name one in config.toml: ledger = \"NODEID@host:port\"; 'dds ledger run' starts one on this machine"
HINTS: Final = {  # by the rule's code
    "insufficient-balance": "see what there is: dds wallet show",
    "no-such-account": "an account comes to be when somebody sends to it; yours is: dds wallet show",
    "bad-nonce": "another command sends from this account at the same time: try again",
}

WalletOption = Annotated[
    str | None, typer.Option("--wallet", metavar="NAME", help="A wallet of this home [default: the home's identity]")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def wallet_file(home: Home, name: str) -> Path:
    """
    Raises:
        InputError: not a name.
    """
    if not WALLET_NAME.fullmatch(name) or name == IDENTITY:
        raise InputError(
            f"not a wallet's name: {name[:64]!r}", hint=f"letters, digits, '.', '_' and '-', at most 63; not {IDENTITY!r}"
        )
    return home.wallets_dir / f"{name}.key"


def wallet_key(home: Home, name: str | None) -> SigningKey:
    """The key of a wallet; without a name the home's identity, made at first use.

    Raises:
        InputError: not a name.
        ConfigError: no such wallet, or a key file that others can read.
    """
    if name is None:
        return home.identity()
    from dds.storage.keyfile import load_key

    path = wallet_file(home, name)
    if not path.exists():
        raise ConfigError(f"there is no wallet {name!r} in {home.root}", hint=f"make it: dds wallet new --wallet {name}")
    return load_key(path)


def wallets(home: Home) -> list[str]:
    """The names of the home's wallets, in order; its identity is not among them."""
    return sorted(path.stem for path in home.wallets_dir.glob("*.key")) if home.wallets_dir.is_dir() else []


def ledger_home(session: Session) -> Home:
    """The session's home, connected to a ledger.

    Raises:
        ConfigError: it is connected to no network, or names no ledger.
    """
    home = session.open_home()
    if not home.client_config().ledger:
        raise ConfigError(f"{home.root} names no ledger", hint=LEDGER_HINT)
    return home


@dataclass(frozen=True)
class Desk:
    """One command's dealings with the ledger."""

    session: Session
    home: Home
    client: LedgerClient
    wallet: str | None = None

    @cached_property
    def key(self) -> SigningKey:
        """Who signs."""
        return wallet_key(self.home, self.wallet)

    async def params(self) -> Params:
        from dds.ledger.records import PARAMS

        found = await self.client.find(PARAMS)
        assert found is not None, "genesis puts them there"
        return found

    async def chain(self) -> Chain:
        from dds.ledger.records import CHAIN

        found = await self.client.find(CHAIN)
        assert found is not None, "genesis puts it there"
        return found

    async def find_many(self, table: Table[V], identifiers: Sequence[bytes]) -> list[V | None]:
        """The entries of one table, in the order asked; None: proven to be absent."""
        return await self.client.find_many([(table, identifier) for identifier in identifiers])

    def account(self, text: str) -> bytes:
        """As `account_named`, of this command's home."""
        return account_named(self.home, text)

    async def node(self, text: str) -> Node:
        """A node: its NodeID, its number on the ledger, or its name in this home's devnet.

        Raises:
            InputError: none of these.
            NotFoundError: the ledger does not know it.
        """
        from dds.ledger.records import NODES, NUMBERS, number_key

        number: int | None = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else None
        if number is None:
            entry = await self.client.find(NUMBERS, node_id_of(self.home, text))
            number = None if entry is None else entry.number
        found = None if number is None else await self.client.find(NODES, number_key(number))
        if found is None:
            raise NotFoundError(
                f"the ledger knows no node {text}", hint="register it: dds stake register; see: dds market asks"
            )
        return found

    async def contract(self, text: str) -> tuple[bytes, Contract]:
        """A contract: its id, or the class of one of the wallet's own.

        Raises:
            InputError: neither.
            NotFoundError: there is none.
        """
        from dds.ledger.records import CONTRACTS, contract_id

        identifier = parse_id(text, "contract") if len(text) == ID_TEXT_CHARS else contract_id(self.key.public, text)
        found = await self.client.find(CONTRACTS, identifier)
        if found is None:
            raise NotFoundError(
                f"there is no contract {text}",
                hint=f"see: {command_hint('contract list', self.session)}; open one: dds contract open CLASS",
            )
        return identifier, found

    async def contract_ids(self, publisher: bytes) -> list[bytes]:
        """The contracts that this account may have: of each class, and of every geometry that it ever paid into."""
        from dds.erasure.geometry import CLASSES, CUSTOM_CLASS
        from dds.ledger.records import contract_id

        own = [contract_id(publisher, name) for name in (*CLASSES, CUSTOM_CLASS)]
        paid = [row.event.contract async for row in self.client.all_events(account=publisher) if row.event.contract]
        return list(dict.fromkeys([*own, *paid]))

    async def send(self, body: AnyBody) -> TxDone:
        """Sign, send, wait until it is final.

        Raises:
            LedgerRefused: the rules say no; where something can be done about it, the hint says what.
            RemoteError: the ledger's host cannot be had.
        """
        try:
            return await self.client.submit(self.key, body)
        except LedgerRefused as error:
            raise LedgerRefused(error.refusal, error.message, hint=error.hint or HINTS.get(error.refusal)) from None


def account_named(home: Home, text: str) -> bytes:
    """An account: its id, the name of a wallet of this home, or `identity` for the home's own.

    Raises:
        InputError: none of these.
    """
    if len(text) == ID_TEXT_CHARS:
        return parse_id(text, "account")
    if text == IDENTITY or has_wallet(home, text):
        return wallet_key(home, None if text == IDENTITY else text).public
    raise InputError(
        f"not an account or a wallet of this home: {text[:64]!r}", hint="an account has 52 characters; see: dds wallet list"
    )


def has_wallet(home: Home, name: str) -> bool:
    return WALLET_NAME.fullmatch(name) is not None and name != IDENTITY and wallet_file(home, name).exists()


def node_id_of(home: Home, text: str) -> bytes:
    """A NodeID's text, or the name of a node in the home's devnet.

    Raises:
        InputError: neither.
    """
    if len(text) == ID_TEXT_CHARS:
        return parse_id(text, "NodeID")
    from dds.runtime.devnet import Devnet

    devnet = Devnet(home)
    members = {member.name: member.id for member in devnet.members()} if devnet.exists else {}
    if text not in members:
        raise InputError(
            f"not a node: {text[:64]!r}",
            hint="a NodeID has 52 characters"
            + (f"; this home's devnet has {min(members)} to {max(members)}" if members else ""),
        )
    return parse_id(members[text], "NodeID")


def with_ledger(session: Session, use: Callable[[Desk], Coroutine[Any, Any, T]], *, wallet: str | None = None) -> T:
    """Open the home's ledger for one command."""
    home = ledger_home(session)
    if wallet is not None:
        wallet_key(home, wallet)  # fails with its hint before anything heavy is imported
    from dds.runtime.ledger_client import open_ledger

    config = home.client_config()

    async def work() -> T:
        async with open_ledger(config.ledger, network=config.network) as client:
            return await use(Desk(session, home, client, wallet))

    return run_async(work(), verbose=session.verbose)


def confirm(session: Session, question: str, *, yes: bool) -> None:
    """Ask before money moves; a machine and a closed terminal say --yes.

    Raises:
        InputError: nobody is there to ask.
        typer.Abort: the answer was no.
    """
    import sys

    if yes:
        return
    if session.json or not sys.stdin.isatty():
        raise InputError("this moves money and nobody is there to ask", hint="say --yes to go ahead")
    typer.confirm(question, abort=True, err=True)


def told(session: Session, done: TxDone, text: str, **data: object) -> None:
    """Print what a transaction did: `text` for people; its id, height and events with `data` for machines."""
    session.result(
        {**data, "tx": plain(done.tx_id), "height": done.height, "events": [event_data(event) for event in done.events]}, text
    )
    session.detail(f"transaction {id_text(done.tx_id)} in block {done.height}")


def event_data(event: Event) -> dict[str, object]:
    """An event as JSON has it: what it does not speak of is left out."""
    empty = {"account": "", "contract": "", "segment": "", "evidence": "", "detail": "", "node": -1, "index": -1}
    return {name: value for name, value in fields(event).items() if name not in empty or value != empty[name]}
