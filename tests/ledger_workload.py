"""10,000 signed transactions of every kind that needs no other sender's turn: the same bytes for any engine.

100 accounts, each an operator with one node, send 100 each. Those of one sender follow each other by nonce; across senders they
commute, so that an engine may put them into any order. What others pay into, everybody opens in round 0, which is final before
round 1 is sent. Nothing is drawn by chance or by time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator
from dds.ledger.params import devnet_params
from dds.ledger.records import contract_id
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB
from dds.wire.ledger import (
    AnyBody,
    Bond,
    Deposit,
    DrainPool,
    Endow,
    FundPool,
    OpenContract,
    RequestWithdrawal,
    SetAsk,
    SetContract,
    TopUp,
    Transfer,
    Unbond,
    WithdrawEscrow,
    sign_tx,
)

NETWORK: Final = "agree"
EPOCH_MS: Final = 30 * 24 * 3_600_000  # nobody crosses it
SENDERS: Final = tuple(SigningKey(number.to_bytes(32, "big")) for number in range(1, 101))
TXS_EACH: Final = 100
ROUND_TXS: Final = 500  # of all senders a few, in one submission
CLASS: Final = "standard"

NONCES_A_ROUND: Final = ROUND_TXS // len(SENDERS)


def busy_genesis(genesis_ms: int) -> Genesis:
    """Every sender has 1,000 tokens, a bond and a node with a pool."""
    accounts = [key.public for key in SENDERS]
    return Genesis(
        version=GENESIS_VERSION,
        network=NETWORK,
        params=devnet_params(genesis_ms, EPOCH_MS),
        accounts=tuple(GenesisAccount(account, 1_000 * TOKEN) for account in accounts),
        operators=tuple(GenesisOperator(account, 200 * TOKEN, ("eu",)) for account in accounts),
        nodes=tuple(_node(number, account) for number, account in enumerate(accounts)),
    )


def rounds() -> list[list[bytes]]:
    """All transactions, ROUND_TXS at a time."""
    return [
        [sign_tx(key, NETWORK, nonce, _body(sender, nonce)) for nonce in nonces for sender, key in enumerate(SENDERS)]
        for nonces in (range(first, first + NONCES_A_ROUND) for first in range(0, TXS_EACH, NONCES_A_ROUND))
    ]


def _node(number: int, operator: bytes) -> GenesisNode:
    key = SigningKey((1_000 + number).to_bytes(32, "big"))
    return GenesisNode(key.public, operator, operator, ("ssn",), "eu", f"subnet-{number}", 64 * GIB, 1_325, 10**6, 10 * TOKEN)


def _body(sender: int, nonce: int) -> AnyBody:
    """Amounts are of one base unit's order: nobody runs out, whoever is first."""
    return _OPENING[nonce](sender, nonce) if nonce < len(_OPENING) else _MIX[nonce % len(_MIX)](sender, nonce)


def _account(sender: int) -> bytes:
    return SENDERS[sender % len(SENDERS)].public


def _contract(sender: int) -> bytes:
    return contract_id(_account(sender), CLASS)


def _newcomer(sender: int, nonce: int) -> bytes:
    """An account that begins with this transfer: each of ten is first paid by whoever comes first."""
    return SigningKey((10_000 + (sender * 7 + nonce) % 10).to_bytes(32, "big")).public


_Maker = Callable[[int, int], AnyBody]

# What later ones stand on, all within round 0.
_OPENING: Final[tuple[_Maker, ...]] = (
    lambda sender, nonce: OpenContract(CLASS, 10, 6, 1_000, 5_000, 10 * TOKEN + sender),
    lambda sender, nonce: Deposit(TOKEN + sender),
    lambda sender, nonce: FundPool(sender, TOKEN + sender),
    lambda sender, nonce: Bond(TOKEN + sender, ["eu", f"r{sender}"]),
    lambda sender, nonce: Transfer(_account(sender + 1), 1 + sender),
)

_MIX: Final[tuple[_Maker, ...]] = (
    lambda sender, nonce: Transfer(_account(sender + nonce), 1_000 + sender + nonce),
    lambda sender, nonce: Deposit(1 + nonce),
    lambda sender, nonce: TopUp(_contract(sender + nonce), 5 + nonce),  # another's contract
    lambda sender, nonce: Transfer(_newcomer(sender, nonce), 1 + nonce),
    lambda sender, nonce: SetAsk(sender, 1_000 + sender + nonce, 64 * GIB, 10**6 + nonce),
    lambda sender, nonce: Bond(nonce, ["eu"]),
    lambda sender, nonce: Endow(_contract(3 * sender + nonce), 7 + nonce),
    lambda sender, nonce: Transfer(_account(sender + 2 * nonce + 1), 3),
    lambda sender, nonce: FundPool(sender, 11 + nonce),
    lambda sender, nonce: RequestWithdrawal(1 + nonce % 2),
    lambda sender, nonce: TopUp(_contract(sender), 2 + nonce),
    lambda sender, nonce: SetContract(_contract(sender), 1_000 + nonce, 5_000 + sender),
    lambda sender, nonce: DrainPool(sender, 1 + nonce),
    lambda sender, nonce: WithdrawEscrow(_contract(sender), 1 + nonce),
    lambda sender, nonce: Unbond(1 + nonce),
)
