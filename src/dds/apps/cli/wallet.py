"""`dds wallet`: the accounts of this home, what they have, and sending from them. Keys are never printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dds.apps.cli.ledger_session import (
    IDENTITY,
    Desk,
    WalletOption,
    YesOption,
    confirm,
    told,
    wallet_file,
    wallet_key,
    wallets,
    with_ledger,
)
from dds.apps.cli.ledger_text import facts, table
from dds.apps.cli.session import Session, command, command_hint, fields, group, plain
from dds.primitives.errors import InputError, LedgerRefused
from dds.primitives.ids import id_text
from dds.primitives.money import format_tokens, parse_tokens


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an account has, in base units, by where it is."""

    account: bytes
    exists: bool  # the ledger knows the account
    balance: int
    nonce: int
    escrow: int  # of its contracts
    deposit: int  # for retrieval
    deposit_leaving: int
    bond: int
    unbonding: int
    pools: int  # of its nodes, free and locked

    @property
    def total(self) -> int:
        return self.balance + self.escrow + self.deposit + self.deposit_leaving + self.bond + self.unbonding + self.pools


def app() -> typer.Typer:
    """The `wallet` group."""
    made = group("wallet", "The accounts of this home on the ledger: the home's identity, and wallets with names.")
    for run in (new, show, send, deposit, withdraw, grant):
        command(made)(run)
    command(made, "list")(list_wallets)
    return made


def new(session: Session, wallet: WalletOption = None) -> None:
    """Make a wallet, or the home's identity where there is none yet; never over one that exists. Prints its account."""
    from dds.storage.home import private_directory
    from dds.storage.keyfile import create_key

    home = session.open_home(create=True)
    path = home.identity_file if wallet is None else wallet_file(home, wallet)
    if path.exists():
        name = "this home's identity" if wallet is None else f"the wallet {wallet!r}"
        raise InputError(f"{name} exists already: {path}", hint="it is kept; name another one with --wallet NAME")
    private_directory(path.parent)
    key = create_key(path)
    session.result({"account": key.public, "file": str(path)}, id_text(key.public))
    session.say(f"keep a copy of {path}: whoever has it has the money, and without it nobody has")


def list_wallets(session: Session) -> None:
    """Show the wallets of this home and their accounts; asks no ledger."""
    home = session.open_home()
    found = [(IDENTITY, wallet_key(home, None).public)] if home.identity_file.exists() else []
    found += [(name, wallet_key(home, name).public) for name in wallets(home)]
    rows = [(name, id_text(account)) for name, account in found]
    session.result(
        {"wallets": [{"name": name, "account": account} for name, account in rows]},
        table(("wallet", "account"), rows) if rows else "no wallet yet",
    )
    if not rows:
        session.say(f"hint: {command_hint('wallet new', session)}")


def show(
    session: Session,
    account: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Another account [default: the wallet's]")] = None,
    wallet: WalletOption = None,
) -> None:
    """Show an account: its balance, and what it has in contracts, deposits, bonds and collateral pools."""

    async def work(desk: Desk) -> Holdings:
        return await holdings(desk, desk.key.public if account is None else desk.account(account))

    found = with_ledger(session, work, wallet=wallet)
    session.result({**fields(found), "total": found.total}, describe(found))
    if not found.exists:
        session.say("the ledger does not know this account yet: it comes to be when somebody sends to it")


def send(
    session: Session,
    to: Annotated[str, typer.Argument(metavar="TO", help="An account, or a wallet of this home.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Tokens, for example 12 or 0.25.")],
    wallet: WalletOption = None,
    yes: YesOption = False,
) -> None:
    """Send AMOUNT to TO; it cannot be taken back."""
    from dds.wire.ledger import Transfer

    units = positive_tokens(amount)

    async def work(desk: Desk) -> None:
        target = desk.account(to)
        if target == desk.key.public:
            raise InputError("that is the account it would come from")
        confirm(session, f"send {format_tokens(units)} from {id_text(desk.key.public)} to {id_text(target)}?", yes=yes)
        done = await desk.send(Transfer(target, units))
        told(session, done, f"sent {format_tokens(units)} to {id_text(target)}", to=id_text(target), amount=units)

    with_ledger(session, work, wallet=wallet)


def deposit(
    session: Session,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Tokens, for example 12 or 0.25.")],
    wallet: WalletOption = None,
    yes: YesOption = False,
) -> None:
    """Put AMOUNT into the retrieval deposit: what vouchers for reading are paid from. It can be asked back (withdraw)."""
    from dds.wire.ledger import Deposit

    units = positive_tokens(amount)

    async def work(desk: Desk) -> None:
        confirm(session, f"put {format_tokens(units)} of {id_text(desk.key.public)} into its deposit?", yes=yes)
        done = await desk.send(Deposit(units))
        told(session, done, f"put {format_tokens(units)} into the deposit", amount=units)

    with_ledger(session, work, wallet=wallet)


def withdraw(
    session: Session,
    amount: Annotated[
        str | None, typer.Argument(metavar="AMOUNT", help="Tokens to ask back [default: take what is due, else ask for all]")
    ] = None,
    wallet: WalletOption = None,
) -> None:
    """Ask a deposit back, and take what was asked back when its time has come: nodes may redeem vouchers until then."""
    from dds.ledger.records import DEPOSITS, DepositEntry
    from dds.wire.ledger import RequestWithdrawal, Withdraw

    units = None if amount is None else positive_tokens(amount)

    async def work(desk: Desk) -> None:
        found = await desk.client.find(DEPOSITS, desk.key.public) or DepositEntry()
        if units is None and found.leaving:
            try:  # the ledger says whether it is time: on one where nothing happens, the last block is of an epoch long past
                done = await desk.send(Withdraw())
            except LedgerRefused as refusal:
                if refusal.refusal != "too-early":
                    raise
            else:
                told(session, done, f"took {format_tokens(found.leaving)} back", taken=found.leaving)
                return
        asked = found.amount if units is None else units
        if not asked and found.leaving:
            raise InputError(
                f"{format_tokens(found.leaving)} are on their way: they can be taken in epoch {found.release_epoch}",
                hint=f"this is epoch {(await desk.chain()).epoch}; run the same command again then",
            )
        if not asked:
            raise InputError("there is no deposit to take back", hint="see: dds wallet show")
        done = await desk.send(RequestWithdrawal(asked))
        release = (await desk.client.find(DEPOSITS, desk.key.public) or DepositEntry()).release_epoch
        again = command_hint("wallet withdraw", session)
        text = f"asked {format_tokens(asked)} back: take it from epoch {release} on with {again}"
        told(session, done, text, asked=asked, release_epoch=release)

    with_ledger(session, work, wallet=wallet)


def grant(
    session: Session,
    to: Annotated[str, typer.Argument(metavar="READER", help="The account that reads: 'dds wallet list' there shows it.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Tokens, for all that it reads under this grant.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the grant goes.")],
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="How long it holds, in epochs of the ledger.")] = 720,
    wallet: WalletOption = None,
) -> None:
    """Sign a grant: READER's reads are paid from this wallet's deposit, up to AMOUNT. It moves no money by itself."""
    import os

    from dds.primitives.ids import ID_BYTES
    from dds.storage.home import write_atomic
    from dds.wire.vouchers import ANY_NODE, GRANT_VERSION, Grant, sign_grant

    units = positive_tokens(amount)
    if os.path.lexists(out):
        raise InputError(f"{out} exists already", hint="name another file with -o")

    async def work(desk: Desk) -> Grant:
        last = (await desk.chain()).epoch + epochs
        network = desk.home.client_config().network
        return Grant(GRANT_VERSION, network, desk.key.public, desk.account(to), units, ANY_NODE, last, os.urandom(ID_BYTES))

    made = with_ledger(session, work, wallet=wallet)
    write_atomic(out, sign_grant(wallet_key(session.open_home(), wallet), made))
    data = {
        "file": str(out),
        "sponsor": made.sponsor,
        "reader": made.grantee,
        "amount": units,
        "expires_epoch": made.expires_epoch,
    }
    session.result(plain(data), f"{out}: {format_tokens(units)} for {id_text(made.grantee)}, until epoch {made.expires_epoch}")
    session.say(f"it is used with: dds get CONTENTID --grant {out}")


def positive_tokens(text: str) -> int:
    """
    Raises:
        InputError: not an amount, or nothing.
    """
    units = parse_tokens(text)
    if units == 0:
        raise InputError("an amount of nothing", hint="write it like 12 or 0.25")
    return units


async def holdings(desk: Desk, account: bytes) -> Holdings:
    """What the ledger has in this account's name."""
    from dds.ledger.records import ACCOUNTS, CONTRACTS, DEPOSITS, NODES, OPERATORS, number_key

    client = desk.client
    entry, deposit, operator = (
        await client.find(ACCOUNTS, account),
        await client.find(DEPOSITS, account),
        await client.find(OPERATORS, account),
    )
    contracts = await desk.find_many(CONTRACTS, await desk.contract_ids(account))
    nodes = await desk.find_many(NODES, [number_key(number) for number in (operator.nodes if operator else ())])
    return Holdings(
        account=account,
        exists=entry is not None,
        balance=entry.balance if entry else 0,
        nonce=entry.nonce if entry else 0,
        escrow=sum(contract.escrow for contract in contracts if contract and contract.publisher == account),
        deposit=deposit.amount if deposit else 0,
        deposit_leaving=deposit.leaving if deposit else 0,
        bond=operator.bond if operator else 0,
        unbonding=sum(part.amount for part in operator.unbonding) if operator else 0,
        pools=sum(node.pool_free + node.pool_locked for node in nodes if node),
    )


def describe(found: Holdings) -> str:
    """The account and its balance; of the other purses those with something in them."""
    purses = (
        ("in contracts", found.escrow),
        ("in deposit", found.deposit),
        ("leaving deposit", found.deposit_leaving),
        ("bond", found.bond),
        ("unbonding", found.unbonding),
        ("collateral", found.pools),
    )
    elsewhere = [(name, format_tokens(amount)) for name, amount in purses if amount]
    pairs = [("account", id_text(found.account)), ("balance", format_tokens(found.balance)), *elsewhere]
    if elsewhere:
        pairs.append(("together", format_tokens(found.total)))
    return facts([*pairs, ("nonce", found.nonce)])
