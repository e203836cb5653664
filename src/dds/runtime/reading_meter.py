"""Keeps a node's accounts of its readers, takes their vouchers, refuses who owes too much.

    GET  /v1/reading/terms    the node's price, and how the asking reader stands
    POST /v1/reading/voucher  a promise of money, taken when it is genuine, the asker's own, and for this node

Decides which voucher is genuine and whose it is: it must be signed by the key that reads, so that another's, copied from the
ledger, is worth nothing here. How much money is behind it the ledger says (asked at most once a second a payer; while it is
away, vouchers of known payers are kept and count as far as it has vouched before). Does not decide what a reader owes
(protocol/reading_account.py) nor when vouchers are redeemed (redeemer.py). Source: docs/spec/retrieval.md, "Paying for reads".
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from dds.primitives.errors import FormatError, IntegrityError, PaymentRequired, UnavailableError
from dds.primitives.ids import ID_BYTES, NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.money import format_tokens, mul_div_ceil
from dds.primitives.units import KIB, human_bytes
from dds.protocol.reading_account import DAY_MS, ReaderAccount, ReaderAccounts, ReadingPolicy
from dds.runtime.audit_ledger import LedgerPort
from dds.runtime.reading_backing import Backings
from dds.runtime.redeemer import Redeemer
from dds.storage.reading_book import HeldVoucher, ReadingBook
from dds.transport.routes import Request, Response, Route, message_response, rpc_route
from dds.wire.retrieval import VOUCHER_REQUEST_BYTES_MAX, ReadingTerms, VoucherRequest
from dds.wire.vouchers import Grant, Voucher, grant_name, open_grant, open_voucher

BOOK_FILE: Final = "reading.sqlite"  # in the node's home
SAVE_EVERY_S: Final = 1.0  # what a crash may forget of who read how much; never a voucher
BLOCKS_CACHED_MAX: Final = 4096

P = ParamSpec("P")
T = TypeVar("T")


@lru_cache(maxsize=BLOCKS_CACHED_MAX)
def address_block(address: str) -> bytes:
    """Anonymous readers of one /24 or /48 are one reader. Longer than a NodeID, so that it cannot be one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return b"anonymous readers without an address"
    net = ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 48), strict=False)
    return b"anonymous readers of " + str(net).encode().rjust(ID_BYTES)


class PaidMeter:
    """Implements `ReadingMeter`. Use `jobs` and `routes`; `close` when both are over."""

    def __init__(
        self,
        key: SigningKey,
        network: str,
        policy: ReadingPolicy,
        home: Path,
        ledger: LedgerPort,
        pool: Executor,
        now_ms: Callable[[], int],
        *,
        redeem_epochs: int,
    ) -> None:
        """Opens the book in the node's `home`.

        Raises:
            ConfigError, StorageError
        """
        self._node, self._network, self._policy = NodeID(key.public), network, policy
        self._pool, self._now_ms = pool, now_ms
        self._book = ReadingBook(home / BOOK_FILE)
        self._accounts = ReaderAccounts(policy)
        self._accounts.restore(self._book.accounts())
        self._backings = Backings(ledger, self._node, now_ms)
        self.redeemer = Redeemer(key, network, self._book, ledger, self._backings, self._accounts.cover, pool, redeem_epochs)

    # ---- ReadingMeter

    def admit(self, request: Request) -> None:
        anonymous = request.peer is None
        reader = request.peer or address_block(request.address)
        if not self._accounts.admits(reader, self._now_ms(), anonymous=anonymous):
            raise self._refusal(reader, anonymous=anonymous)

    def served(self, request: Request, byte_count: int) -> None:
        reader = request.peer or address_block(request.address)
        self._accounts.charge(reader, byte_count, self._now_ms(), anonymous=request.peer is None)

    def _refusal(self, reader: bytes, *, anonymous: bool) -> PaymentRequired:
        price = f"{self._policy.price:,} base units per KiB"
        if anonymous:
            return PaymentRequired(
                f"what anonymous readers of this address may read for nothing is used up; reading costs {price}",
                hint="read with a key: it has an allowance of its own and can pay",
            )
        account = self._accounts.of(reader, self._now_ms())
        unpaid = max(0, account.owed - account.paid)
        per_day = self._policy.free_bytes_per_day
        wait = f"; {human_bytes(per_day)} a day are free" if per_day else ""
        return PaymentRequired(
            f"reading here costs {price}{wait}: {format_tokens(unpaid)} are owed and not paid",
            hint="pay with a voucher (POST /v1/reading/voucher; for dds: set reading_deposit in config.toml)"
            + (f", or come back in {self._patience_s(account):,} s" if per_day else ""),
        )

    def _patience_s(self, account: ReaderAccount) -> int:
        """Until time has forgiven what is beyond the debt limit."""
        beyond = max(0, account.unpaid_parts // self._policy.price - self._policy.debt_bytes_max) + 1
        return mul_div_ceil(beyond, DAY_MS, self._policy.free_bytes_per_day * 1000)

    # ---- routes

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/v1/reading/terms", self._get_terms, max_reply_bytes=KIB, peer_required=True),
            rpc_route(
                "/v1/reading/voucher",
                VoucherRequest,
                self._voucher,
                max_body_bytes=VOUCHER_REQUEST_BYTES_MAX,
                max_reply_bytes=KIB,
                peer_required=True,
            ),
        ]

    async def _get_terms(self, request: Request) -> Response:
        assert request.peer is not None  # the route requires it
        return message_response(self._terms(request.peer))

    def _terms(self, reader: NodeID) -> ReadingTerms:
        account = self._accounts.of(reader, self._now_ms())
        policy = self._policy
        return ReadingTerms(
            policy.price, account.free_bytes, policy.debt_bytes_max, account.read_bytes, account.owed, account.paid
        )

    async def _voucher(self, request: Request, message: VoucherRequest) -> ReadingTerms:
        assert request.peer is not None  # the route requires it
        reader = request.peer
        voucher, grant = self._opened(reader, message)
        payer = voucher.payer + voucher.grant
        await self._take(reader, payer, voucher, grant, message)
        return self._terms(reader)

    def _opened(self, reader: NodeID, message: VoucherRequest) -> tuple[Voucher, Grant | None]:
        """
        Raises:
            FormatError, IntegrityError: not genuine, for another node, or another reader's.
        """
        grants: dict[bytes, Grant] = {}
        if message.grant:
            grant = open_grant(message.grant, self._network)
            grants[grant_name(grant)] = grant
        voucher, found = open_voucher(message.voucher, self._network, grants)
        if voucher.node_id != self._node:
            raise IntegrityError("a voucher for another node")
        if (found.grantee if found else voucher.payer) != reader:
            raise IntegrityError("another reader's voucher: it is signed with another key than the one that reads")
        return voucher, found

    async def _take(self, reader: NodeID, payer: bytes, voucher: Voucher, grant: Grant | None, message: VoucherRequest) -> None:
        known = self._accounts.of(reader, self._now_ms()).promises.get(payer)
        backing = await self._backings.of(payer, grant, voucher.cumulative)
        if backing is None and known is None:
            raise UnavailableError("this node cannot ask its ledger about a new payer now", hint="try again in a while")
        if backing is not None and voucher.epoch > backing.epoch:
            raise FormatError(f"a voucher of epoch {voucher.epoch}; this is {backing.epoch}")
        covered = backing.covered if backing else known.covered if known else 0
        base = known.base if known else backing.paid if backing else 0
        now = self._now_ms()
        if not self._accounts.promise(reader, payer, voucher.cumulative, now, covered=covered, base=base):
            return
        paid = backing.paid if backing else 0
        held = HeldVoucher(reader, payer, voucher.cumulative, base, covered, paid, message.voucher, message.grant)
        await self._run(self._book.keep_voucher, held, self._accounts.of(reader, now))
        self.redeemer.wake_for(voucher.cumulative - paid)

    # ---- keeping

    def jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What is to be kept running, by name."""
        return {"reading-accounts": self._keep, "redeemer": self.redeemer.run}

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Write what has changed.

        Raises:
            StorageError
        """
        changed, forgotten = self._accounts.take_changes()
        if changed or forgotten:
            await self._run(self._book.save, changed, forgotten)

    async def close(self) -> None:
        """Save and close. No request may come any more."""
        await self.save()
        self._book.close()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))
