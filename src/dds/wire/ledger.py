"""Ledger transactions: every body, its canonical bytes, its signature (docs/spec/ledger.md, "Transactions").

    transaction   Signed[payload, key, signature] under b"dds/tx/v1" and the network's name
    payload       [version, nonce, body] or [version, nonce, body, salt]       body = [tag, fields...]
    id            SHA-256 of the signed bytes

The signer's key is the sender's account. A nonce is the number of transactions that the sender made before: each counts once,
in order. Only the one canonical spelling is accepted: what does not re-encode to the same bytes is refused, so a transaction
has one id. Bodies carry no floats, no maps and no optional order: lists that are sets are strictly ascending.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.errors import FormatError, UnsupportedVersion
from dds.primitives.hashing import sha256, tagged_hash
from dds.primitives.keys import SigningKey
from dds.primitives.money import AMOUNT_MAX
from dds.primitives.units import KIB, N_MAX, STRIPES_PER_SEGMENT_MAX
from dds.wire.codec import Message, decode, encode
from dds.wire.segment import StripeShape
from dds.wire.signed import ENVELOPE_BYTES_MAX, open_signed, sign

TX_VERSION: Final = 1
TX_TAG: Final = b"dds/tx/v1"
CONSENT_TAG: Final = b"dds/node-consent/v1"
TX_BYTES_MAX: Final = 256 * KIB
TX_SALT_BYTES_MAX: Final = 8
EPOCH_MAX: Final = 1 << 40
NODES_MAX: Final = 1 << 20  # node numbers stay below
BATCH_MAX: Final = 64  # segments, vouchers or losses in one transaction
RECEIPT_BYTES_MAX: Final = 1 * KIB
LABEL_CHARS_MAX: Final = 64
REGIONS_MAX: Final = 16
ROLES_MAX: Final = 8

_RUN: Final = struct.Struct(">HHHI")

ID = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Amount = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Epoch = Annotated[int, Meta(ge=0, le=EPOCH_MAX)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]  # a size
NodeNumber = Annotated[int, Meta(ge=0, lt=NODES_MAX)]
Index = Annotated[int, Meta(ge=0, lt=N_MAX)]
Label = Annotated[str, Meta(min_length=1, max_length=LABEL_CHARS_MAX, pattern=r"^[\x21-\x7e]+\Z")]
Count = Annotated[int, Meta(ge=1, le=BATCH_MAX)]
Bitmap = Annotated[bytes, Meta(max_length=NODES_MAX // 8)]  # bit i of byte i // 8, least significant first
StripeMap = Annotated[bytes, Meta(min_length=8, max_length=8)]  # bit s of the little-endian integer: stripe s
SegmentList = Annotated[list[ID], Meta(min_length=1, max_length=BATCH_MAX)]  # strictly ascending
RawReceipt = Annotated[bytes, Meta(max_length=RECEIPT_BYTES_MAX)]


class Body(Message, frozen=True):
    """Base of every transaction's body; its subclasses are told apart by `tag`."""


# -- accounts ---------------------------------------------------------------------------------------------------------------


class Transfer(Body, frozen=True, tag=1):
    to: ID
    amount: Amount


# -- operators and their bonds ----------------------------------------------------------------------------------------------


class Bond(Body, frozen=True, tag=10):
    """Become an operator, add to its bond (0 is allowed then), or declare its regions anew."""

    amount: Amount
    regions: Annotated[list[Label], Meta(max_length=REGIONS_MAX)]


class Unbond(Body, frozen=True, tag=11):
    """Begin to take bond out: it stays slashable until the evidence window is over."""

    amount: Amount


class ReleaseBond(Body, frozen=True, tag=12):
    """Take out what has waited long enough."""


class FundPool(Body, frozen=True, tag=13):
    """Commit money to a node's collateral pool; the sender must be its operator."""

    node: NodeNumber
    amount: Amount


class DrainPool(Body, frozen=True, tag=14):
    """Take back what no assignment holds."""

    node: NodeNumber
    amount: Amount


# -- nodes ------------------------------------------------------------------------------------------------------------------


class RegisterNode(Body, frozen=True, tag=20):
    """`consent`: the node's signature over the operator's account under CONSENT_TAG, so that nobody claims another's node."""

    node_id: ID
    consent: Signature
    roles: Annotated[list[Label], Meta(min_length=1, max_length=ROLES_MAX)]  # strictly ascending
    region: Label
    subnet: Label
    capacity_bytes: Bytes
    payout: ID  # the account that its pay goes to
    ask_price: Amount  # per MiB-epoch
    term_epochs_max: Epoch
    pool: Amount  # into its collateral pool


class SetAsk(Body, frozen=True, tag=21):
    """What a node asks and offers from now on; by its operator or the node itself."""

    node: NodeNumber
    ask_price: Amount
    capacity_bytes: Bytes  # not below what it has promised already
    term_epochs_max: Epoch


class RetireNode(Body, frozen=True, tag=22):
    """No new assignments; when the last has ended its pool can be drained."""

    node: NodeNumber


# -- contracts --------------------------------------------------------------------------------------------------------------


class OpenContract(Body, frozen=True, tag=30):
    """One standing contract per publisher and class; its id follows from both."""

    class_name: Label
    k: Annotated[int, Meta(ge=1, le=64)]
    m: Annotated[int, Meta(ge=1, lt=N_MAX)]
    term_epochs: Annotated[int, Meta(ge=1, le=EPOCH_MAX)]
    price_max: Amount  # the creator's own limit, per MiB-epoch
    deposit: Amount


class SetContract(Body, frozen=True, tag=31):
    contract: ID
    term_epochs: Annotated[int, Meta(ge=1, le=EPOCH_MAX)]
    price_max: Amount


class TopUp(Body, frozen=True, tag=32):
    """Anyone may."""

    contract: ID
    amount: Amount


class WithdrawEscrow(Body, frozen=True, tag=33):
    """Take back what pays for nothing yet."""

    contract: ID
    amount: Amount


class CancelContract(Body, frozen=True, tag=34):
    """Its sponsorships end with the present epoch; what was paid beyond that comes back as the segments are settled."""

    contract: ID


# -- segments ---------------------------------------------------------------------------------------------------------------


class Reserve(Body, frozen=True, tag=40):
    """Draw nodes for `count` segments: their shares are held for them until the reservation expires."""

    contract: ID
    count: Count
    width: Annotated[int, Meta(ge=1, le=N_MAX)]  # n
    loss_tolerance: Annotated[int, Meta(ge=0, lt=N_MAX)]  # m
    fragment_bytes_max: Bytes  # of one index, all stripes


class CancelReservations(Body, frozen=True, tag=41):
    reservations: SegmentList


class StripeRun(Message, frozen=True):
    """`count` stripes of one shape, one after another."""

    count: Annotated[int, Meta(ge=1, le=STRIPES_PER_SEGMENT_MAX)]
    k: Annotated[int, Meta(ge=1, le=64)]
    m: Annotated[int, Meta(ge=0, lt=N_MAX)]
    slot_bytes: Annotated[int, Meta(ge=1, le=1 << 20)]


def stripe_runs(stripes: Sequence[StripeShape]) -> list[StripeRun]:
    """Neighbours of one shape, counted: the one spelling that receipts are made for."""
    runs: list[StripeRun] = []
    for shape in stripes:
        last = runs[-1] if runs else None
        if last is not None and (last.k, last.m, last.slot_bytes) == (shape.k, shape.m, shape.slot_bytes):
            runs[-1] = StripeRun(last.count + 1, shape.k, shape.m, shape.slot_bytes)
        else:
            runs.append(StripeRun(1, shape.k, shape.m, shape.slot_bytes))
    return runs


def stripes_hash(stripes: Iterable[StripeRun]) -> bytes:
    """Binds a receipt to the stripes in their order: audits find a leaf by them, so nobody may register others later."""
    return tagged_hash(b"dds/stripes/v1", *(_RUN.pack(run.count, run.k, run.m, run.slot_bytes) for run in stripes))


class SegmentEntry(Message, frozen=True):
    reservation: ID
    segment_id: ID
    segment_root: ID
    encoding_hash: ID  # SHA-256 of the encoding record's payload
    stripes: Annotated[list[StripeRun], Meta(min_length=1, max_length=STRIPES_PER_SEGMENT_MAX)]
    receipts: Annotated[list[RawReceipt], Meta(max_length=N_MAX)]  # by ascending index; each names reservation || stripes_hash


class RegisterSegments(Body, frozen=True, tag=42):
    segments: Annotated[list[SegmentEntry], Meta(min_length=1, max_length=BATCH_MAX)]


class AddReceipts(Body, frozen=True, tag=43):
    """Activate assignments that were pending; by anyone."""

    segment_id: ID
    receipts: Annotated[list[RawReceipt], Meta(min_length=1, max_length=N_MAX)]


class Sponsor(Body, frozen=True, tag=44):
    """Pay for stripes that are stored already: their rent is split among their sponsors."""

    contract: ID
    segment_id: ID
    stripes: StripeMap


class Unsponsor(Body, frozen=True, tag=45):
    """End the contract's sponsorship of these segments with the present epoch."""

    contract: ID
    segments: SegmentList


class ExtendSegments(Body, frozen=True, tag=46):
    """Pay for `epochs` more from the contract's escrow; by its publisher, or by anyone where an endowment stands behind it."""

    contract: ID
    segments: SegmentList
    epochs: Annotated[int, Meta(ge=1, le=EPOCH_MAX)]


class Settle(Body, frozen=True, tag=47):
    """Pay what is due for these segments and end what has ended; by anyone, as often as they like."""

    segments: SegmentList


class Redraw(Body, frozen=True, tag=48):
    """Draw new nodes for indices that nobody holds."""

    segment_id: ID
    indices: Annotated[list[Index], Meta(min_length=1, max_length=N_MAX)]


class ReportLoss(Body, frozen=True, tag=49):
    """A node's own word that it lost shares; the sender is the node."""

    losses: Annotated[list[Loss], Meta(min_length=1, max_length=BATCH_MAX)]


class Loss(Message, frozen=True):
    segment_id: ID
    index: Index


class Reencode(Body, frozen=True, tag=50):
    """Give a segment that is stored another encoding, under another contract of its publisher: new geometry, new nodes, the
    same segment id. Every index needs its receipt; then the old assignments end and their unused rent goes back."""

    segment: SegmentEntry


# -- retrieval --------------------------------------------------------------------------------------------------------------


class Deposit(Body, frozen=True, tag=60):
    """Money that vouchers are paid from."""

    amount: Amount


class RequestWithdrawal(Body, frozen=True, tag=61):
    amount: Amount


class Withdraw(Body, frozen=True, tag=62):
    """Take out what has waited long enough."""


class RedeemVouchers(Body, frozen=True, tag=63):
    """By anyone; the nodes named in the vouchers are paid. Grants stand beside their vouchers (wire/vouchers.py)."""

    vouchers: Annotated[list[Annotated[bytes, Meta(max_length=KIB)]], Meta(min_length=1, max_length=BATCH_MAX)]
    grants: Annotated[list[Annotated[bytes, Meta(max_length=KIB)]], Meta(max_length=BATCH_MAX)]


# -- endowments -------------------------------------------------------------------------------------------------------------


class Endow(Body, frozen=True, tag=70):
    """Money that pays the rent of a contract's segments for as long as it lasts; it never comes back. By anyone."""

    contract: ID
    amount: Amount


class SpendEndowment(Body, frozen=True, tag=71):
    """Move what the elapsed epochs allow from the pool into the contract's escrow; by anyone."""

    contract: ID


# -- witnesses --------------------------------------------------------------------------------------------------------------


class LossFound(Message, frozen=True):
    node: NodeNumber
    segment_id: ID
    index: Index


class WitnessReport(Body, frozen=True, tag=80):
    """One a witness and epoch: what it saw of the audits of `epoch`, and its part of the beacon. The sender is the witness."""

    epoch: Epoch  # the one that the audits belong to
    passed: Bitmap  # node numbers whose every challenged leaf held
    losses: Annotated[list[LossFound], Meta(max_length=BATCH_MAX)]  # strictly ascending; re-checked before it is said
    commit: Annotated[bytes, Meta(max_length=32)]  # SHA-256 commitment of the secret for the present epoch's round; or empty
    reveal: Annotated[bytes, Meta(max_length=32)]  # the secret of the last round; or empty

    @property
    def is_vote(self) -> bool:
        """A report that holds a reveal and nothing else says nothing about `epoch`."""
        return bool(self.passed or self.losses or self.commit or not self.reveal)


class SubmitEvidence(Body, frozen=True, tag=81):
    """Evidence that proves itself (wire/evidence.py); the reporter is paid if it holds."""

    evidence: Annotated[bytes, Meta(max_length=64 * KIB)]


AnyBody = (
    Transfer
    | Bond
    | Unbond
    | ReleaseBond
    | FundPool
    | DrainPool
    | RegisterNode
    | SetAsk
    | RetireNode
    | OpenContract
    | SetContract
    | TopUp
    | WithdrawEscrow
    | CancelContract
    | Reserve
    | CancelReservations
    | RegisterSegments
    | AddReceipts
    | Sponsor
    | Unsponsor
    | ExtendSegments
    | Settle
    | Redraw
    | ReportLoss
    | Reencode
    | Deposit
    | RequestWithdrawal
    | Withdraw
    | RedeemVouchers
    | Endow
    | SpendEndowment
    | WitnessReport
    | SubmitEvidence
)


class TxPayload(Message, frozen=True):
    version: int
    nonce: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
    body: AnyBody


class SaltedTxPayload(Message, frozen=True):
    """`salt`: no rule looks at it. It makes equal transactions of two programs that use one key two transactions. An empty one
    is spelled as a TxPayload."""

    version: int
    nonce: Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
    body: AnyBody
    salt: Annotated[bytes, Meta(max_length=TX_SALT_BYTES_MAX)] = b""


class Tx(Message, frozen=True):
    """An opened transaction: what the rules see."""

    tx_id: bytes  # SHA-256 of the signed bytes
    sender: bytes  # the account
    nonce: int
    body: AnyBody


def sign_tx(key: SigningKey, network: str, nonce: int, body: AnyBody, salt: bytes = b"") -> bytes:
    """The signed transaction's bytes. `salt`: at most TX_SALT_BYTES_MAX random bytes, where others sign with the same key."""
    return sign(key, TX_TAG, network, _spelled(SaltedTxPayload(TX_VERSION, nonce, body, salt)))


def _spelled(payload: SaltedTxPayload) -> bytes:
    """The one canonical spelling."""
    return encode(payload if payload.salt else TxPayload(payload.version, payload.nonce, payload.body))


def open_tx(raw: bytes, network: str) -> Tx:
    """Parse, check the one canonical spelling and the signature.

    Raises:
        FormatError: malformed, too large, not canonical.
        IntegrityError: the signature does not hold on this network.
        UnsupportedVersion
    """
    if len(raw) > TX_BYTES_MAX:
        raise FormatError(f"a transaction of {len(raw)} bytes exceeds {TX_BYTES_MAX}", actual=len(raw), expected=TX_BYTES_MAX)
    envelope = open_signed(raw, TX_TAG, network, max_bytes=TX_BYTES_MAX + ENVELOPE_BYTES_MAX)
    payload = decode(envelope.payload, SaltedTxPayload, max_bytes=TX_BYTES_MAX)
    if payload.version != TX_VERSION:
        raise UnsupportedVersion(f"transaction version {payload.version} is not known", hint="upgrade dds")
    if _spelled(payload) != envelope.payload or encode(envelope) != raw:
        raise FormatError("a transaction that is not in its canonical form")
    return Tx(sha256(raw), envelope.key, payload.nonce, payload.body)


def tx_name(body: AnyBody) -> str:
    """`RegisterNode` -> `register-node`: how people and metrics see it."""
    name = type(body).__name__
    return "".join(("-" if at and char.isupper() else "") + char.lower() for at, char in enumerate(name))
