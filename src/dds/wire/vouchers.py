"""Vouchers and grants: signed promises of money for bytes that were read (docs/spec/ledger.md, "Retrieval").

    voucher   Signed[Voucher, key, signature] under b"dds/voucher/v1"; the key is the payer's, or a grantee's
    grant     Signed[Grant, sponsor, signature] under b"dds/grant/v1"

A voucher is cumulative: it says what the payer owes this node in all, ever, so only the newest counts and an older one is worth
nothing more. A grant lets its grantee sign vouchers that its sponsor's deposit pays, up to a cap over all nodes together.
Decides what is well-formed and who may sign; whether there is money behind it is the ledger's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.errors import FormatError, IntegrityError, UnsupportedVersion
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import ID_BYTES
from dds.primitives.keys import SigningKey
from dds.wire.codec import Message, decode, encode
from dds.wire.ledger import ID, Amount, Epoch
from dds.wire.signed import open_signed, sign

VOUCHER_VERSION: Final = 1
GRANT_VERSION: Final = 1
VOUCHER_TAG: Final = b"dds/voucher/v1"
GRANT_TAG: Final = b"dds/grant/v1"
VOUCHER_BYTES_MAX: Final = 512  # of either's payload; the envelope comes on top
ANY_NODE: Final = bytes(ID_BYTES)

Network = Annotated[str, Meta(min_length=1, max_length=64)]


class Voucher(Message, frozen=True):
    version: int
    network: Network
    payer: ID  # whose deposit pays: the signer, or the grant's sponsor
    node_id: ID
    cumulative: Amount  # base units, of all reads from this node so far (under this grant)
    epoch: Epoch  # when it was signed; worth nothing before
    grant: Annotated[bytes, Meta(max_length=ID_BYTES)] = b""  # the grant's name; empty: the payer signs for itself


class Grant(Message, frozen=True):
    version: int
    network: Network
    sponsor: ID
    grantee: ID  # the key that signs its vouchers
    amount: Amount  # base units: the cap, over all nodes
    node_id: ID  # the one that it holds for; ANY_NODE: every node
    expires_epoch: Epoch  # the last that its vouchers can be redeemed in
    grant_id: ID  # chosen by the sponsor; sets grants apart that are otherwise alike


def grant_name(grant: Grant) -> bytes:
    """What vouchers call their grant: it commits to every field, so no other grant can be put in its place."""
    return tagged_hash(b"dds/grant-name/v1", encode(grant))


def sign_voucher(key: SigningKey, voucher: Voucher) -> bytes:
    assert voucher.grant or key.public == voucher.payer
    return sign(key, VOUCHER_TAG, voucher.network, encode(voucher))


def sign_grant(key: SigningKey, grant: Grant) -> bytes:
    assert key.public == grant.sponsor
    return sign(key, GRANT_TAG, grant.network, encode(grant))


def open_grant(raw: bytes, network: str) -> Grant:
    """Parse and check a grant, its sponsor against its signer.

    Raises:
        FormatError, IntegrityError, UnsupportedVersion.
    """
    envelope = open_signed(raw, GRANT_TAG, network, max_bytes=VOUCHER_BYTES_MAX)
    grant = decode(envelope.payload, Grant, max_bytes=VOUCHER_BYTES_MAX)
    if grant.version != GRANT_VERSION:
        raise UnsupportedVersion(f"grant version {grant.version} is not known", hint="upgrade dds")
    if grant.network != network or grant.sponsor != envelope.key:
        raise IntegrityError("a grant for another network, or by another than its sponsor")
    return grant


def open_voucher(raw: bytes, network: str, grants: Mapping[bytes, Grant]) -> tuple[Voucher, Grant | None]:
    """Parse and check a voucher and, where it was signed under one, find its grant among `grants` (by name).

    Raises:
        FormatError: malformed, or its grant is not there.
        IntegrityError: signed by somebody who may not, or for what the grant does not cover.
        UnsupportedVersion
    """
    envelope = open_signed(raw, VOUCHER_TAG, network, max_bytes=VOUCHER_BYTES_MAX)
    voucher = decode(envelope.payload, Voucher, max_bytes=VOUCHER_BYTES_MAX)
    if voucher.version != VOUCHER_VERSION:
        raise UnsupportedVersion(f"voucher version {voucher.version} is not known", hint="upgrade dds")
    if voucher.network != network:
        raise IntegrityError(f"a voucher for network {voucher.network!r}")
    if not voucher.grant:
        if voucher.payer != envelope.key:
            raise IntegrityError("a voucher signed by another than its payer, and under no grant")
        return voucher, None
    grant = grants.get(voucher.grant)
    if grant is None:
        raise FormatError(f"the grant {voucher.grant.hex()[:16]} does not stand beside its voucher")
    _check_grant(voucher, envelope.key, grant)
    return voucher, grant


def _check_grant(voucher: Voucher, signer: bytes, grant: Grant) -> None:
    if (voucher.payer, signer) != (grant.sponsor, grant.grantee):
        raise IntegrityError("a voucher by another than the grantee, or on another than the sponsor's deposit")
    if grant.node_id not in (ANY_NODE, voucher.node_id):
        raise IntegrityError(f"the grant holds for node {grant.node_id.hex()[:16]} only")
    if voucher.epoch > grant.expires_epoch:
        raise IntegrityError(f"signed in epoch {voucher.epoch}, the grant ended with {grant.expires_epoch}")
