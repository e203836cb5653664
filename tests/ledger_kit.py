"""A small ledger for tests: two funded accounts, epochs of a second, and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence

from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount
from dds.ledger.params import devnet_params
from dds.primitives.keys import SigningKey
from dds.wire.ledger import Transfer, sign_tx

NETWORK = "test"
ANNA, BERT = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
START_MS = 1_700_000_000_000
EPOCH_MS = 1_000
FUNDS = 1_000_000


def small_genesis(*, genesis_ms: int = START_MS, epoch_ms: int = EPOCH_MS, accounts: Sequence[bytes] = ()) -> Genesis:
    funded = (ANNA.public, BERT.public, *accounts)
    params = devnet_params(genesis_ms, epoch_ms)
    return Genesis(GENESIS_VERSION, NETWORK, params, tuple(GenesisAccount(account, FUNDS) for account in funded))


def transfer(nonce: int, amount: int = 1, *, sender: SigningKey = ANNA, to: bytes = BERT.public) -> bytes:
    return sign_tx(sender, NETWORK, nonce, Transfer(to, amount))
