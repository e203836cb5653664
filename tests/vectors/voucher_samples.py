"""A voucher by its payer, a grant, and a voucher under it, from fixed inputs."""

from __future__ import annotations

from dds.primitives.keys import SigningKey
from dds.wire.vouchers import ANY_NODE, Grant, Voucher, grant_name, sign_grant, sign_voucher

NETWORK = "testnet"
PAYER, GRANTEE = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
NODE_ID = bytes(range(100, 132))

GRANT = Grant(1, NETWORK, PAYER.public, GRANTEE.public, 5_000_000, ANY_NODE, 720, bytes(range(200, 232)))
VOUCHER = Voucher(1, NETWORK, PAYER.public, NODE_ID, 1_862_000, 17)
GRANTED = Voucher(1, NETWORK, PAYER.public, NODE_ID, 1_000, 18, grant_name(GRANT))


def samples() -> dict[str, bytes]:
    return {
        "voucher": sign_voucher(PAYER, VOUCHER),
        "grant": sign_grant(PAYER, GRANT),
        "granted voucher": sign_voucher(GRANTEE, GRANTED),
    }
