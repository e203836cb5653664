"""Pays nodes for what was read from them, where the home is willing to: vouchers, and the deposit that stands behind them.

A node that serves no more without money answers 402; the client's transport then asks here (`pay`) and repeats the request
once if it was paid. At the end of a session, and now and then in a daemon, `settle` pays what is owed beyond small change. Both
go to whoever served: storage nodes, origins and edges alike, but to nobody that sent wrong bytes. What was read within a node's
allowance asks no ledger, and neither does a promise that the deposit is known to cover.

Decides when to pay and when to put money into the deposit: `reading_deposit` at a time, never without being told to in
config.toml. Does not decide how much a voucher says (protocol/reading_purse.py) nor keep it (storage/purse_book.py).
Source: docs/spec/retrieval.md, "Paying for reads".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dds.ledger.records import CHAIN, DEPOSITS, PAID
from dds.ledger.rules.retrieval import direct_key, grant_key
from dds.primitives.errors import ConfigError, DDSError, LedgerRefused, PaymentRequired, UnavailableError
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.money import format_tokens
from dds.primitives.units import KIB, MIB
from dds.protocol.reading_purse import SETTLED_BYTES_MIN, Step, Tab, is_worth_settling, next_promise
from dds.runtime.audit_ledger import LedgerPort
from dds.runtime.ledger_client import ledger_at
from dds.runtime.tasks import gather_all
from dds.storage.purse_book import PurseBook
from dds.transport.client import PeerClient
from dds.wire.codec import decode
from dds.wire.ledger import Deposit
from dds.wire.retrieval import ReadingTerms, VoucherRequest
from dds.wire.vouchers import VOUCHER_VERSION, Voucher, grant_name, open_grant, sign_voucher

log = logging.getLogger(__name__)

PAID_PATHS: Final = ("/v1/fragments/", "/v1/read", "/v1/blocks/", "/v1/leaves", "/v1/edge/read")
READING_PREFIX: Final = "/v1/reading/"  # paying is no reading
TERMS_BYTES_MAX: Final = KIB
ASK_TIMEOUT_S: Final = 5.0
SETTLE_TIMEOUT_S: Final = 5.0  # all nodes together, at the end
NOTED_BYTES: Final = 8 * MIB  # read from a node, and it is written down: what a crash may forget
POOR_S: Final = 10.0  # the ledger refused a deposit: it is not tried again for so long
ROUNDS_MAX: Final = 3  # of asking and promising: a promise short of money is made again once there is some


@dataclass(frozen=True, slots=True)
class PurseTerms:
    """What the home is willing to do. `deposit`: base units at a time, 0: nothing; `price_max`: base units per KiB."""

    deposit: int
    price_max: int


class Purse:
    """One session's. Implements the `Payer` of transport/client.py; `start` before it is used, `close` at the end."""

    def __init__(
        self,
        key: SigningKey,
        network: str,
        catalog: Path,
        terms: PurseTerms,
        ledger: str,
        *,
        grant: bytes = b"",
    ) -> None:
        """`ledger`: its host, "NODEID@host:port"; empty: this home names none. `grant`: a signed grant whose sponsor pays.

        Raises:
            FormatError, IntegrityError: the grant is none, or of another network.
            ConfigError: it is made out to another key.
            StorageError
        """
        self._key, self._network, self._terms, self._ledger = key, network, terms, ledger
        self._grant_file, self._grant = grant, open_grant(grant, network) if grant else None
        if self._grant is not None and self._grant.grantee != key.public:
            raise ConfigError(f"the grant is for {id_text(self._grant.grantee)}, and this home is {id_text(key.public)}")
        name = grant_name(self._grant) if self._grant else b""
        self._payer, self._grant_name = (self._grant.sponsor if self._grant else key.public), name
        self._book = PurseBook(catalog, network, self._payer + name)
        self._client: PeerClient | None = None
        self._asked_ledger: LedgerPort | None = None
        self._read: dict[bytes, int] = {}  # since it was written down
        self._came: dict[NodeID, int] = {}  # in this session, less what was counted of the next on its account
        self._given_up: dict[NodeID, int] = {}  # asked for and broken off by us, and not counted as read yet
        self._to_settle: dict[NodeID, int] = {}  # read since the node was last asked what is owed
        self._paying: dict[NodeID, asyncio.Task[bool]] = {}
        self._topping_up = asyncio.Lock()
        self._poor_until = 0.0  # in the loop's time
        self._liars: set[NodeID] = set()
        self.paid = 0  # promised in this session
        self.unpaid: dict[NodeID, str] = {}  # who stopped serving, and why it was not paid

    def start(self, client: PeerClient, ledger: LedgerPort | None = None) -> None:
        """`ledger`: one that signs with the same key already, for the nonces of a key have one counter."""
        self._client, self._asked_ledger = client, ledger

    @property
    def is_willing(self) -> bool:
        """Whether anything is ever paid."""
        return self._grant is not None or (self._terms.deposit > 0 and bool(self._ledger))

    # ---- Payer

    def took(self, node: NodeID, path: str, byte_count: int) -> None:
        if self._is_counted(path):
            self._came[node] = self._came.get(node, 0) + byte_count
            self._count(node, byte_count)
            self._count_given_up(node)

    def gave_up(self, node: NodeID, path: str, byte_count: int) -> None:
        """An honest node has read and sent it, and is not to lose by it; one that sends nothing must not earn by hanging. So it
        counts as far as as much has come from that node in this session."""
        if self._is_counted(path):
            self._given_up[node] = self._given_up.get(node, 0) + byte_count
            self._count_given_up(node)

    def _is_counted(self, path: str) -> bool:
        """Where nobody is paid there is nothing to remember."""
        return (bool(self._ledger) or self._grant is not None) and path.startswith(PAID_PATHS)

    def _count_given_up(self, node: NodeID) -> None:
        counted = min(self._came.get(node, 0), self._given_up.get(node, 0))
        if counted:
            self._came[node] -= counted
            self._given_up[node] -= counted
            self._count(node, counted)

    def _count(self, node: NodeID, byte_count: int) -> None:
        self._to_settle[node] = self._to_settle.get(node, 0) + byte_count
        noted = self._read[node] = self._read.get(node, 0) + byte_count
        if noted >= NOTED_BYTES:
            self._note()

    async def pay(self, node: NodeID, path: str) -> bool:
        """Whether the node was paid, so that it can be asked again. One payment a node at a time, whoever waits for it."""
        if not path.startswith(PAID_PATHS):
            return False
        task = self._paying.get(node)
        if task is None:
            task = self._paying[node] = asyncio.create_task(self._pay_or_say_why(node))
            task.add_done_callback(lambda _: self._paying.pop(node, None))
        return await asyncio.shield(task)  # who reads may be cancelled; a promise goes out once it is made

    def lied(self, node: NodeID) -> None:
        """It sent wrong bytes: in this session it is paid nothing."""
        self._liars.add(node)

    # ---- the end

    async def settle(self) -> int:
        """Pay the nodes that are owed more than small change; what was promised in this session, in base units."""
        if self.is_willing:
            self._note()
            tabs = await asyncio.to_thread(self._book.tabs)
            asked = [node for node, count in self._to_settle.items() if count and _is_due(tabs.get(node, Tab()), count)]
            try:
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    await gather_all([self._settle(node) for node in asked])
            except TimeoutError:
                log.info("some nodes could not be settled with in time: it is done in the next session")
        return self.paid

    async def close(self) -> None:
        """Finish payments under way, write down what was read."""
        await asyncio.gather(*self._paying.values(), return_exceptions=True)
        self._note()
        self._book.close()

    def hint(self) -> str | None:
        """What to do about nodes that were not paid; None where there are none."""
        if not self.unpaid:
            return None
        reason = next(iter(self.unpaid.values()))
        return f"{len(self.unpaid)} nodes serve no more without being paid: {reason}"

    async def _settle(self, node: NodeID) -> None:
        if node in self._liars:
            return
        try:
            terms = await self._ask_terms(node)
            self._to_settle[node] = 0
            if is_worth_settling(terms):
                await self._pay(node, terms)
        except DDSError as error:
            log.info("node %s was not settled with: %s", id_text(node), error.message)

    def _note(self) -> None:
        read, self._read = self._read, {}
        if read:
            self._book.add_bytes(read)

    # ---- one payment

    async def _pay_or_say_why(self, node: NodeID) -> bool:
        try:
            if not self.is_willing:
                raise PaymentRequired("this home pays for no reads", hint=self._how_to_pay())
            if node in self._liars:
                raise PaymentRequired("it sent wrong bytes and is not paid")
            self._note()
            await self._pay(node, await self._ask_terms(node))
        except DDSError as error:
            self.unpaid[node] = error.message + (f" ({error.hint})" if error.hint else "")
            log.info("node %s is not paid: %s", id_text(node), error.message)
            return False
        self.unpaid.pop(node, None)
        return True

    def _how_to_pay(self) -> str:
        if not self._ledger:
            return "name the network's ledger in config.toml, and set reading_deposit there"
        return "set reading_deposit in config.toml: so many base units go into the deposit that reads are paid from"

    async def _pay(self, node: NodeID, terms: ReadingTerms) -> None:
        """
        Raises:
            PaymentRequired: it asks too much, or more than was read there; or no money is to be had.
            DDSError: the node or the ledger cannot be had.
        """
        for round_ in range(ROUNDS_MAX):
            step = await asyncio.to_thread(self._book.promise, node, self._decide(terms))
            self.paid += step.amount
            if step.amount or (step.tab.promised and not step.short):
                before, terms = terms, await self._send(node, step.tab.promised)
                if _serves_again(terms):
                    return
                if step.amount and terms.owed > before.owed:
                    continue  # it remembered an older debt
            if round_ + 1 < ROUNDS_MAX:
                await self._top_up(node, max(step.short, 1))
        raise PaymentRequired(
            f"asks for {format_tokens(terms.owed - terms.paid)} more than was read from it",
            hint="it is not paid; other nodes are read from",
        )

    def _decide(self, terms: ReadingTerms) -> Callable[[Tab, int, int], Step]:
        return lambda tab, at_hand, others: next_promise(
            tab, terms, price_max=self._terms.price_max, at_hand=at_hand, by_others=others
        )

    async def _ask_terms(self, node: NodeID) -> ReadingTerms:
        assert self._client is not None, "started"
        raw = await self._client.get(node, READING_PREFIX + "terms", max_bytes=TERMS_BYTES_MAX, timeout_s=ASK_TIMEOUT_S)
        return decode(raw, ReadingTerms, max_bytes=TERMS_BYTES_MAX)

    async def _send(self, node: NodeID, cumulative: int) -> ReadingTerms:
        assert self._client is not None, "started"
        epoch = self._book.cover()[1]
        voucher = Voucher(VOUCHER_VERSION, self._network, self._payer, node, cumulative, epoch, self._grant_name)
        request = VoucherRequest(sign_voucher(self._key, voucher), self._grant_file)
        return await self._client.call(
            node, READING_PREFIX + "voucher", request, ReadingTerms, max_bytes=TERMS_BYTES_MAX, timeout_s=2 * ASK_TIMEOUT_S
        )

    # ---- money

    async def _top_up(self, node: NodeID, missing: int) -> None:
        """Look at the deposit anew, and put money into it when `missing` base units are not there.

        Raises:
            PaymentRequired: the account has not so much, or a sponsor's grant is used up.
            UnavailableError, RemoteError: the ledger cannot be asked.
        """
        if not self._ledger:
            raise PaymentRequired("the grant is used up as far as this home knows", hint=self._how_to_pay())
        async with self._topping_up:
            ledger = self._ledger_client()
            if await self._count_cover(ledger, node) >= missing:
                return
            if self._grant is not None:
                raise PaymentRequired("the sponsor's grant or deposit is used up", hint="ask for another one")
            loop = asyncio.get_running_loop()
            if loop.time() < self._poor_until:
                raise PaymentRequired("the deposit could not be topped up a moment ago", hint="see: dds wallet show")
            try:
                await ledger.submit(self._key, Deposit(self._terms.deposit))
            except LedgerRefused as refusal:
                self._poor_until = loop.time() + POOR_S
                raise PaymentRequired(
                    f"the deposit could not be topped up: {refusal.message}", hint="see: dds wallet show"
                ) from None
            if await self._count_cover(ledger, node) < missing:
                raise PaymentRequired(
                    f"reading_deposit in config.toml is too little: {format_tokens(missing)} are asked at once",
                    hint="set more, or: dds wallet deposit AMOUNT",
                )

    def _ledger_client(self) -> LedgerPort:
        assert self._client is not None, "started"
        if self._asked_ledger is None:
            self._asked_ledger = ledger_at(self._ledger, self._client, self._network)
        return self._asked_ledger

    async def _count_cover(self, ledger: LedgerPort, node: NodeID) -> int:
        """What of the deposit no promise counts on, by the ledger."""
        tabs = await asyncio.to_thread(self._book.tabs)
        nodes = sorted({*tabs, node})
        keys: list[tuple[Any, bytes]] = [(CHAIN, b""), (DEPOSITS, self._payer)]
        keys += [(PAID, grant_key(self._grant_name, each) if self._grant else direct_key(self._payer, each)) for each in nodes]
        if self._grant is not None:
            keys.append((PAID, grant_key(self._grant_name)))
        chain, deposit, *found = await ledger.find_many(keys)
        if chain is None:
            raise UnavailableError("the ledger has no genesis")
        paid = {each: entry.amount for each, entry in zip(nodes, found, strict=False) if entry is not None}
        available = deposit.amount if deposit else 0
        if self._grant is not None:
            left = (
                self._grant.amount - (found[-1].amount if found[-1] else 0) if chain.epoch <= self._grant.expires_epoch else 0
            )
            available = min(available, left)
        return await asyncio.to_thread(self._book.set_cover, available, chain.epoch, paid)


def _is_due(tab: Tab, count: int) -> bool:
    """Whether what was read and not promised for grew past another SETTLED_BYTES_MIN with the last `count` bytes; it may have
    been free, so that a node is not asked after every little read."""
    return tab.bytes // SETTLED_BYTES_MIN > max(0, tab.bytes - count) // SETTLED_BYTES_MIN


def _serves_again(terms: ReadingTerms) -> bool:
    return terms.free_bytes > 0 or (terms.owed - terms.paid) * KIB < terms.debt_bytes_max * max(1, terms.price)
