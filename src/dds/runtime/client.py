"""The client: what programs and the command line use to put and get content.

async with open_client(Home.open()) as client:
    result = await client.put(Path("site"), PutOptions())
    await client.get(result.content, Path("copy"))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from dds.erasure.geometry import ARCHIVE_CLASS, ARCHIVES, class_geometry
from dds.ledger.records import SEGMENTS
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import InputError
from dds.primitives.keys import SigningKey
from dds.runtime.class_choice import Choice, Explanation, choose_class, explain_put
from dds.runtime.content_stat import Payers
from dds.runtime.contract_desk import ContractDesk, open_desk
from dds.runtime.escrow_claims import EscrowClaims
from dds.runtime.get import Reading
from dds.runtime.home_stat import index_from, measure_home
from dds.runtime.network import Network, open_network
from dds.runtime.offers import Confirm, accept
from dds.runtime.origin_client import OriginClient
from dds.runtime.purse import Purse, PurseTerms
from dds.runtime.put import Put
from dds.runtime.results import ContentStat, Entry, GetResult, HomeStat, Progress, PutOptions, PutResult
from dds.runtime.tier_status import TierDesk, TierStatus
from dds.runtime.tiering import Move, MovePlan, MoveResult, Target
from dds.storage.catalog import Catalog
from dds.storage.home import ClientConfig, Home, in_region
from dds.storage.policy_file import load_policy
from dds.storage.source import SourceOptions, measure_dag
from dds.transport.heap import CLIENT_KEPT_BYTES, CLIENT_MAPPED_BYTES_MIN, keep_freed_memory


def _silent(progress: Progress) -> None:
    """Nobody is watching."""


class Client:
    """One session: connections, known nodes and the home's catalog are shared by all operations."""

    def __init__(self, network: Network, catalog: Catalog, home: Home) -> None:
        self.network = network
        self._catalog, self._home = catalog, home
        self._claims = EscrowClaims()

    async def put(
        self,
        source: Path | BinaryIO,
        options: PutOptions | None = None,
        progress: Callable[[Progress], None] = _silent,
        *,
        total_bytes: int | None = None,
        confirm: Confirm = accept,
    ) -> PutResult:
        """Store a file, directory or stream; returns when every fragment has a durable receipt, or with ack "fast" when so
        many have that this home's origin daemon, which it is handed over to, may be left alone with the rest.

        Where the network is paid, `confirm` is asked with the quote before anything is sent.

        Raises:
            InputError, SourceChangedError: about the source or the options, or the quote was declined.
            ConfigError: the home's rule file of class policy does not hold.
            NotEnoughNodes: too few nodes took their fragments; running it again resumes where it stopped.
        """
        choice = await self._choose(source, options or PutOptions())
        options = choice.options
        desk = self._desk(options, confirm)
        if options.ack == "fast":
            if desk is not None and not confirm(await desk.offer(await dag_bytes(source, options))):
                raise InputError("the quote was not accepted: nothing was stored", hint="accept it with --yes")
            result = await OriginClient(self._home, self.network.client).put(source, options, progress)
        else:
            put = Put(self.network, self._catalog, self._home.spool_dir, options, progress, desk=desk)
            result = await put.run(source, total_bytes, None if desk is None else await dag_bytes(source, options))
        return result if choice.note is None else replace(result, notes=[choice.note, *result.notes])

    async def explain(self, source: Path | BinaryIO, options: PutOptions | None = None) -> Explanation:
        """What a put of `source` would be: its class and why, how safe, how large, what it costs. Stores nothing.

        Raises:
            InputError, SourceChangedError: about the source or the options.
            ConfigError: the home's rule file does not hold.
        """
        choice = await self._choose(source, options or PutOptions())
        found = await explain_put(source, choice)
        desk = self._desk(choice.options, accept)
        if desk is None:
            return found
        try:
            return replace(found, offer=await desk.offer(found.block_bytes))
        except InputError as error:  # the price is above the limit, or the account has too little
            return replace(found, no_offer=error.message)

    async def _choose(self, source: Path | BinaryIO, options: PutOptions) -> Choice:
        policy = await asyncio.to_thread(load_policy, self._home)
        config = self._home.client_config()
        has_archive = len(self.network.candidates(ARCHIVE_CLASS)) >= ARCHIVES[config.archive].n
        choice = await choose_class(source, options, policy, has_archive=has_archive)
        return replace(choice, options=on_network(choice.options, config))

    def _desk(self, options: PutOptions, confirm: Confirm) -> ContractDesk | None:
        address = self._home.client_config().ledger
        if not address:
            return None
        return open_desk(self.network.ledger(address), self.network.key, options, confirm, self._claims)

    async def get(
        self,
        content: CID,
        out: Path | BinaryIO,
        *,
        path: str = "",
        byte_range: tuple[int, int | None] | None = None,
        overwrite: bool = False,
        progress: Callable[[Progress], None] = _silent,
    ) -> GetResult:
        """Fetch content, or what lies at `path` in it, or bytes [a, b) of one file.

        Raises:
            InputError: no such path, an output that exists, a range of a directory.
            NotFoundError: nobody has it. NotEnoughFragments: too many holders are gone.
            FormatError, IntegrityError: no manifest gives what the ContentID says.
        """
        if byte_range is not None and byte_range[1] is not None and byte_range[1] <= byte_range[0]:
            raise InputError(f"not a range: {byte_range[0]}-{byte_range[1] - 1}")
        reading = self._reading(content, progress)
        if isinstance(out, Path):
            result = await reading.to_path(out, path, byte_range, overwrite=overwrite)
        else:
            result = await reading.to_stream(out, path, byte_range)
        return replace(result, paid=0 if self.network.purse is None else await self.network.purse.settle())

    async def ls(self, content: CID, path: str = "") -> list[Entry]:
        """A directory's entries."""
        return await self._reading(content, _silent).entries(path)

    async def stat(self, content: CID) -> ContentStat:
        """Sizes, savings, segments and how many of their fragments are live; on a paid network, what others pay for too."""
        return await self._reading(content, _silent).stat(index_from(self._catalog), self._payers())

    async def home_stat(self, progress: Callable[[Progress], None] = _silent) -> HomeStat:
        """Totals over everything that was put from this home; a block of several contents counts once."""
        return await measure_home(self.network, self._catalog, progress)

    def _payers(self) -> Payers | None:
        address = self._home.client_config().ledger
        if not address:
            return None
        ledger = self.network.ledger(address)
        return lambda segments: ledger.find_many([(SEGMENTS, segment) for segment in segments])

    async def tier_status(self) -> list[TierStatus]:
        """Every content of this home: its class, how often it is read, and which class it should be in."""
        desk = TierDesk(self.network, self._catalog, self._home.client_config().archive_after_days)
        return [row async for row in desk.all()]

    async def move(
        self,
        content: CID,
        class_name: str,
        *,
        k: int | None = None,
        m: int | None = None,
        term: str = "",
        price_max: int | None = None,
        confirm: Confirm = accept,
        on_plan: Callable[[MovePlan], None] = lambda plan: None,
        progress: Callable[[Progress], None] = _silent,
    ) -> MoveResult:
        """Move a content of this home to another class; its ContentID stays, and readers notice nothing.

        Raises:
            InputError: not this home's, others pay for it too, or the quote was declined.
            UnavailableError: nodes or the ledger would not; what is stored is as it was, and running it again goes on.
        """
        note = self._catalog.content(content)
        if note is None:
            raise InputError(
                f"{cid_text(content)} was not put from this home", hint="only who put it moves it: dds tier status"
            )
        config, key = self._home.client_config(), self.network.key
        options = on_network(PutOptions(class_name=class_name, k=k, m=m), config)
        target, address = Target(class_name, class_geometry(class_name, options.k, options.m)), config.ledger
        desk = None
        if address:
            name, ledger = target.contract_name, self.network.ledger(address)
            desk = ContractDesk(ledger, key, name, target.geometry, term, price_max, confirm, self._claims)
        return await Move(self.network, self._catalog, self._home.spool_dir, note, target, desk, on_plan, progress).run()

    def _reading(self, content: CID, progress: Callable[[Progress], None]) -> Reading:
        note = self._catalog.content(content)
        return Reading(self.network, content, note.holders if note else (), progress)


def on_network(options: PutOptions, config: ClientConfig) -> PutOptions:
    """With the geometry that class archive has on this network: whoever goes on with the put need not know the network's."""
    if options.class_name != ARCHIVE_CLASS or options.k is not None:
        return options
    k, m = ARCHIVES[config.archive]
    return replace(options, k=k, m=m)


async def dag_bytes(source: Path | BinaryIO, options: PutOptions) -> int | None:
    """How many bytes of blocks a source becomes, from its metadata; None for a stream."""
    if not isinstance(source, Path):
        return None
    shape = SourceOptions(options.chunker, options.hidden, options.follow_symlinks)
    return (await asyncio.to_thread(measure_dag, source, shape)).root.tsize


@asynccontextmanager
async def open_client(home: Home, *, region: str | None = None, grant: bytes = b"") -> AsyncIterator[Client]:
    """A session of this home, as if it stood in `region`, where that is given. `grant`: a signed grant whose sponsor pays for
    what is read.

    Raises:
        ConfigError: the home is not set up, or the grant is another's. UnavailableError: no bootstrap node answers.
        InputError: no name of a region. FormatError, IntegrityError: no genuine grant of this network.
    """
    config, key = home.client_config(), home.identity()
    if region is not None:
        config = in_region(config, region)
    keep_freed_memory(CLIENT_KEPT_BYTES, CLIENT_MAPPED_BYTES_MIN)
    catalog = await asyncio.to_thread(Catalog, home.catalog_file)
    try:
        async with open_purse(key, config, home, grant) as purse, open_network(key, config, purse) as network:
            yield Client(network, catalog, home)
    finally:
        catalog.close()


@asynccontextmanager
async def open_purse(key: SigningKey, config: ClientConfig, home: Home, grant: bytes) -> AsyncIterator[Purse]:
    """What a session pays with; the ledger is asked when the deposit must be looked at, and not before."""
    terms = PurseTerms(config.reading_deposit, config.reading_price_max)
    purse = Purse(key, config.network, home.catalog_file, terms, config.ledger, grant=grant)
    try:
        yield purse
    finally:
        await purse.close()
