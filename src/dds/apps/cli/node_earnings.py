"""`dds node earnings`: what this home's node has served, what readers owe it, and what of it is on the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from dds.apps.cli.ledger_text import facts
from dds.apps.cli.node_home import load
from dds.apps.cli.session import Session, fields
from dds.primitives.errors import InputError
from dds.primitives.money import format_tokens
from dds.primitives.units import human_bytes


def earnings(
    session: Session,
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="A node of this home's devnet, by name.")] = None,
) -> None:
    """Show what readers read from this node, what they owe it, the vouchers it holds and what it has redeemed."""
    from dds.runtime.devnet import Devnet
    from dds.runtime.reading_meter import BOOK_FILE
    from dds.storage.home import load_node_config
    from dds.storage.reading_book import Earnings, ReadingBook

    if node is None:
        files, config = load(session)
    else:
        devnet = Devnet(session.open_home())
        names = [member.name for member in devnet.members()] if devnet.exists else []
        if node not in names:
            raise InputError(f"this home's devnet has no node {node[:64]!r}", hint="see: dds devnet status")
        files = devnet.node_home(node)
        config = load_node_config(files.config_file)
    path = files.root / BOOK_FILE
    found = Earnings(0, 0, 0, 0, 0, 0)
    if path.exists():
        book = ReadingBook(path)
        try:
            found = book.earnings()
        finally:
            book.close()
    is_paid = bool(config.ledger and config.read_price)
    price = f"{config.read_price:,} base units per KiB beyond {human_bytes(config.free_read_bytes_per_day)} a day"
    data = {**fields(found), "price": config.read_price if is_paid else 0, "name": config.name}
    rows = [
        ("price", price if is_paid else "nothing: it serves for free"),
        ("readers", found.readers),
        ("read", human_bytes(found.read_bytes)),
        ("owed", format_tokens(found.owed)),
        ("promised", format_tokens(found.promised)),
        ("redeemed", format_tokens(found.redeemed)),
        ("to redeem", format_tokens(found.covered)),
    ]
    session.result(data, facts(rows))
