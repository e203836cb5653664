"""What readers and the nodes that serve them say to each other about reading: edge reads, terms, vouchers, popularity.

    POST /v1/edge/read       EdgeReadRequest -> frame list (wire/api.py): a block for each asked, absent where it is not cached
    GET  /v1/reading/terms   ReadingTerms: what reading costs here, and how the asking reader stands
    POST /v1/reading/voucher VoucherRequest -> ReadingTerms
    POST /v1/popularity      PopularityRequest -> PopularityReply

All but the last need an authenticated peer: an account is kept for each NodeID that reads. Money is in base units,
as in the vouchers themselves (wire/vouchers.py). Source: docs/spec/retrieval.md.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.units import CID_BYTES, KIB
from dds.wire.codec import Message
from dds.wire.ledger import ID, Amount, Bytes

EDGE_BLOCKS_MAX: Final = 64  # of one edge read
EDGE_REPLY_BYTES_MAX: Final = 4 * 1024 * KIB  # together; what does not fit is absent, to be asked for again
VOUCHER_REQUEST_BYTES_MAX: Final = 4 * KIB
POPULARITY_SEGMENTS_MAX: Final = 256
POPULARITY_CONTENTS_MAX: Final = 256

BlockID = Annotated[bytes, Meta(min_length=CID_BYTES, max_length=CID_BYTES)]


class EdgeReadRequest(Message, frozen=True):
    """`content` is the ContentID that the blocks are read for: what an edge warms up by when it has not got them."""

    content: BlockID
    blocks: Annotated[list[BlockID], Meta(min_length=1, max_length=EDGE_BLOCKS_MAX)]


class ReadingTerms(Message, frozen=True):
    """A node's price, and the account it keeps of the reader that asks."""

    price: Amount  # per KiB
    free_bytes: Bytes  # that the reader may still read for nothing
    debt_bytes_max: Bytes  # unpaid beyond them, then the node stops serving it
    read_bytes: Bytes  # by this reader, ever, free ones included
    owed: Amount  # cumulative: what a voucher must promise for the reader to owe nothing
    paid: Amount  # cumulative: what its best voucher here promises


class VoucherRequest(Message, frozen=True):
    voucher: Annotated[bytes, Meta(max_length=KIB)]
    grant: Annotated[bytes, Meta(max_length=KIB)] = b""  # the one that it was signed under, if any


class PopularityRequest(Message, frozen=True):
    """`segments` is for nodes that store, `contents` (ContentIDs) for edges; a node that is not such a one answers 0 to it."""

    segments: Annotated[list[ID], Meta(max_length=POPULARITY_SEGMENTS_MAX)]
    contents: Annotated[list[BlockID], Meta(max_length=POPULARITY_CONTENTS_MAX)] = []  # noqa: RUF012 - msgspec copies it


class PopularityReply(Message, frozen=True):
    """What was served here, each read counted less as it ages (docs/spec/tiering.md), in the order asked; 0 where none."""

    reads: Annotated[list[Bytes], Meta(max_length=POPULARITY_SEGMENTS_MAX)]  # of each segment, thousandths of a read
    content_bytes: Annotated[list[Bytes], Meta(max_length=POPULARITY_CONTENTS_MAX)] = []  # noqa: RUF012 - of each content, bytes
