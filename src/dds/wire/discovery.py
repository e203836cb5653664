"""Discovery records: who is there, who holds what, and how they are sealed in the DHT.

Decides: the five records and their bounds, the DHT key and the sealing key of each, the lifetimes. Does not decide which
records to believe first (protocol/discovery.py), nor when to publish (protocol/announce.py). Source: docs/spec/discovery.md.

    record           signed by   found under          says
    NodeRecord       the node    a bucket of NodeIDs  where it is, what it does, what it has free
    ContentProvider  the node    a ContentID          it serves this content's manifest or blocks
    ContentAnnounce  publisher   a ContentID          which nodes hold the manifest
    SegmentProvider  the node    a segment id         it holds this fragment index of the segment
    SegmentHook      publisher   a block's CID        the segment in which this block lies, and who holds it

A DHT's nodes and observers see only a hash as the key and a sealed value: both come from the ContentID (or segment id, block,
or network and bucket) by tagged hashes, so that whoever does not know the ContentID can neither read nor recognise a record.
Sealing hides; it authenticates nobody. Only the signature does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
)
from nacl.exceptions import CryptoError

from dds.primitives.cid import CID, cid_from_bytes
from dds.primitives.errors import FormatError, IntegrityError, UnsupportedVersion
from dds.primitives.hashing import sha256, tagged_hash
from dds.primitives.ids import ID_BYTES, NodeID, SegmentID
from dds.primitives.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify_tagged
from dds.primitives.units import N_MAX
from dds.wire.codec import Message, decode, encode
from dds.wire.signed import ENVELOPE_BYTES_MAX, Signed, sign

RECORD_VERSION: Final = 2
PAYLOAD_BYTES_MAX: Final = 1024
SIGNED_RECORD_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX
NETWORK_CHARS_MAX: Final = 64
ADDRESSES_MAX: Final = 4
ADDRESS_CHARS_MAX: Final = 80
RELAY_CHARS_MAX: Final = 128
LABEL_CHARS_MAX: Final = 64
HOLDERS_MAX: Final = 16
INTEGER_MAX: Final = (1 << 63) - 1

NODE_LIFETIME_MS: Final = 15 * 60_000
PROVIDER_LIFETIME_MS: Final = 24 * 3_600_000
PROVIDER_LIFETIME_MS_MAX: Final = 7 * 24 * 3_600_000  # of a node with so much to announce that it says it less often
HOOK_LIFETIME_MS: Final = 7 * 24 * 3_600_000  # a stale one costs its reader a question, an expired one a whole transfer
CLOCK_SKEW_MS_MAX: Final = 5 * 60_000  # how far ahead of ours another node's clock may be

ROLES: Final = frozenset({"origin", "ssn", "asn", "ecn", "witness", "gateway"})
CONTENT_KINDS: Final = frozenset({"manifest", "origin", "edge"})

NODE_BUCKETS: Final = 16
DHT_KEY_BYTES: Final = 20
_SEAL_VERSION = b"\x01"
_NONCE_BYTES: Final = int(crypto_aead_xchacha20poly1305_ietf_NPUBBYTES)
_AEAD_TAG_BYTES: Final = 16
SEALED_BYTES_MAX: Final = 2 + _NONCE_BYTES + _AEAD_TAG_BYTES + SIGNED_RECORD_BYTES_MAX

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*", re.ASCII)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_RELAY = re.compile(r"https://[a-z0-9.-]{1,100}(?::[1-9][0-9]{0,4})?/?", re.ASCII)
_LABEL = re.compile(r"[\x21-\x7e]*", re.ASCII)


class NodeRecord(Message, frozen=True):
    version: int
    network: str
    node_id: bytes
    addresses: list[str]  # `host:port` of its HTTPS, best first
    roles: list[str]
    region: str
    operator: str
    subnet: str
    free_bytes: int
    capacity_bytes: int
    price: int  # the ledger's smallest unit per GiB and epoch
    software: str
    dht: str  # `host:port` of its DHT node (UDP), or empty
    iroh: list[str]  # its iroh endpoint: `https://` relays it is reached through, `host:port` of its UDP socket; or none
    seq: int  # the signer's clock in ms: the newest record of a node replaces the others
    expires_ms: int


class ContentProvider(Message, frozen=True):
    version: int
    network: str
    content: bytes  # ContentID, 36 bytes
    node_id: bytes
    kind: str  # one of CONTENT_KINDS
    addresses: list[str]
    seq: int
    expires_ms: int


class ContentAnnounce(Message, frozen=True):
    version: int
    network: str
    content: bytes
    publisher: bytes
    holders: list[bytes]  # NodeIDs that hold the manifest
    seq: int
    expires_ms: int


class SegmentProvider(Message, frozen=True):
    version: int
    network: str
    segment_id: bytes
    index: int  # the fragment index held in every stripe
    node_id: bytes
    addresses: list[str]
    seq: int
    expires_ms: int


class SegmentHook(Message, frozen=True):
    version: int
    network: str
    block: bytes  # CID, 36 bytes
    segment_id: bytes
    publisher: bytes
    holders: list[bytes]  # NodeIDs by fragment index, as far as they fit: where they were last known
    seq: int
    expires_ms: int


Record = NodeRecord | ContentProvider | ContentAnnounce | SegmentProvider | SegmentHook
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """One kind of record: its signature tag, its code inside a sealed value, and how its parts are found."""

    code: int
    tag: bytes
    record: type[R]
    lifetime_ms: int
    signer: Callable[[R], bytes]
    subject: Callable[[R], bytes]  # what it is about; a node record is about its node
    is_sound: Callable[[R], bool]  # the fields that only this kind has


class Claim(NamedTuple, Generic[R]):
    """A well-formed record whose signature has *not* been checked yet."""

    record: R
    signer: bytes
    signature: bytes
    payload: bytes
    raw: bytes  # the signed envelope, for passing on


def parse_address(text: str) -> tuple[str, int]:
    """Split `host:port` or `[v6]:port`; hosts are IP addresses or lower-case names.

    Raises:
        FormatError: malformed, or a port outside 1..65535.
    """
    host, _, port = text.rpartition(":")
    bad = FormatError(f"not an address of the form host:port: {text[:ADDRESS_CHARS_MAX]!r}")
    if len(text) > ADDRESS_CHARS_MAX or _PORT.fullmatch(port) is None or int(port) > 65535:
        raise bad
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, 6):
            raise bad
    elif not _is_ip(host, 4) and (_HOST_NAME.fullmatch(host) is None or host.replace(".", "").isdigit()):
        raise bad
    return host, int(port)


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version and "%" not in host
    except ValueError:
        return False


def _are_addresses(addresses: list[str], *, least: int = 1) -> bool:
    if not least <= len(addresses) <= ADDRESSES_MAX:
        return False
    for address in addresses:
        parse_address(address)
    return True


def _are_iroh_addresses(addresses: list[str]) -> bool:
    direct = [address for address in addresses if not is_relay(address)]
    return len(addresses) <= ADDRESSES_MAX and _are_addresses(direct, least=0)


def is_relay(address: str) -> bool:
    """Whether it is the address of an iroh relay, and not of a socket."""
    return len(address) <= RELAY_CHARS_MAX and _RELAY.fullmatch(address) is not None


def _are_counts(*values: int) -> bool:
    return all(0 <= value <= INTEGER_MAX for value in values)


def _are_labels(*labels: str) -> bool:
    return all(len(label) <= LABEL_CHARS_MAX and _LABEL.fullmatch(label) is not None for label in labels)


def _are_holders(holders: list[bytes]) -> bool:
    return 0 < len(holders) <= HOLDERS_MAX and all(len(holder) == ID_BYTES for holder in holders)


def _node_is_sound(record: NodeRecord) -> bool:
    return (
        _are_addresses(record.addresses, least=0)
        and _are_addresses([record.dht] if record.dht else [], least=0)
        and _are_iroh_addresses(record.iroh)
        and len(record.roles) == len(set(record.roles))
        and ROLES.issuperset(record.roles)
        and _are_labels(record.region, record.operator, record.subnet, record.software)
        and _are_counts(record.free_bytes, record.capacity_bytes, record.price)
        and record.free_bytes <= record.capacity_bytes
    )


def _provider_is_sound(record: ContentProvider) -> bool:
    cid_from_bytes(record.content)
    return record.kind in CONTENT_KINDS and _are_addresses(record.addresses)


def _announce_is_sound(record: ContentAnnounce) -> bool:
    cid_from_bytes(record.content)
    return _are_holders(record.holders)


def _segment_is_sound(record: SegmentProvider) -> bool:
    return len(record.segment_id) == ID_BYTES and 0 <= record.index < N_MAX and _are_addresses(record.addresses)


def _hook_is_sound(record: SegmentHook) -> bool:
    cid_from_bytes(record.block)
    return len(record.segment_id) == ID_BYTES and _are_holders(record.holders)


NODE: Final = Kind(
    1, b"dds/node-record/v1", NodeRecord, NODE_LIFETIME_MS, lambda r: r.node_id, lambda r: r.node_id, _node_is_sound
)
CONTENT_PROVIDER: Final = Kind(
    2,
    b"dds/content-provider/v1",
    ContentProvider,
    PROVIDER_LIFETIME_MS_MAX,
    lambda r: r.node_id,
    lambda r: r.content,
    _provider_is_sound,
)
CONTENT_ANNOUNCE: Final = Kind(
    3,
    b"dds/content-announce/v1",
    ContentAnnounce,
    PROVIDER_LIFETIME_MS,
    lambda r: r.publisher,
    lambda r: r.content,
    _announce_is_sound,
)
SEGMENT_PROVIDER: Final = Kind(
    4,
    b"dds/segment-provider/v1",
    SegmentProvider,
    PROVIDER_LIFETIME_MS_MAX,
    lambda r: r.node_id,
    lambda r: r.segment_id,
    _segment_is_sound,
)
SEGMENT_HOOK: Final = Kind(
    5,
    b"dds/segment-hook/v1",
    SegmentHook,
    HOOK_LIFETIME_MS,
    lambda r: r.publisher,
    lambda r: r.block,
    _hook_is_sound,
)


def sign_record(key: SigningKey, kind: Kind[R], record: R) -> bytes:
    """The signed envelope's bytes; `key` is the one that the record names."""
    assert key.public == kind.signer(record)
    _check(kind, record, key.public, record.network)
    return sign(key, kind.tag, record.network, encode(record))


def parse_record(raw: bytes, kind: Kind[R], network: str) -> Claim[R]:
    """Everything but the signature, which costs four times as much: sizes, version, network, signer's id, every field.

    Raises:
        FormatError, IntegrityError (another network or signer), UnsupportedVersion.
    """
    envelope = decode(raw, Signed, max_bytes=SIGNED_RECORD_BYTES_MAX)
    if len(envelope.key) != PUBLIC_KEY_BYTES or len(envelope.signature) != SIGNATURE_BYTES:
        raise FormatError("a signed record has a key or signature of the wrong length")
    record = decode(envelope.payload, kind.record, max_bytes=PAYLOAD_BYTES_MAX)
    _check(kind, record, envelope.key, network)
    return Claim(record, envelope.key, envelope.signature, envelope.payload, bytes(raw))


def is_signed(claim: Claim[R], kind: Kind[R], network: str) -> bool:
    """Whether the claim's signature holds for this kind and network."""
    return verify_tagged(claim.signer, claim.signature, kind.tag, network, claim.payload)


def open_record(raw: bytes, kind: Kind[R], network: str) -> R:
    """Parse and verify; expiry is the caller's to check (`is_current`).

    Raises:
        FormatError, IntegrityError, UnsupportedVersion.
    """
    claim = parse_record(raw, kind, network)
    if not is_signed(claim, kind, network):
        raise IntegrityError(f"signature does not hold for {kind.tag.decode()} on network {network!r}")
    return claim.record


def is_current(record: Record, kind: Kind[R], now_ms: int) -> bool:
    """Not expired, not from the future, and not good for longer than its kind may be."""
    return now_ms < record.expires_ms <= record.seq + kind.lifetime_ms and record.seq <= now_ms + CLOCK_SKEW_MS_MAX


def _check(kind: Kind[R], record: R, signer: bytes, network: str) -> None:
    if record.version != RECORD_VERSION:
        raise UnsupportedVersion(f"{kind.tag.decode()} version {record.version} is not known", hint="upgrade dds")
    if record.network != network or kind.signer(record) != signer:
        raise IntegrityError("a record of another network or node than its signer's")
    if len(network) > NETWORK_CHARS_MAX or not _are_counts(record.seq, record.expires_ms) or not kind.is_sound(record):
        raise FormatError(f"a {kind.record.__name__} with malformed fields")


class Place(NamedTuple):
    """Where records about one subject lie in the DHT, and what seals them."""

    key: bytes  # DHT_KEY_BYTES
    secret: bytes  # 32 bytes


def content_place(network: str, content: CID) -> Place:
    return _place(b"content", network, content)


def segment_place(network: str, segment_id: SegmentID) -> Place:
    return _place(b"segment", network, segment_id)


def hook_place(network: str, block: CID) -> Place:
    return _place(b"hook", network, block)


def node_place(network: str, bucket: int) -> Place:
    """One of NODE_BUCKETS. Its secret follows from the network's name alone: node records are public to its members."""
    assert 0 <= bucket < NODE_BUCKETS
    return _place(b"nodes", network, bytes((bucket,)))


def node_bucket(node_id: NodeID) -> int:
    return node_id[0] * NODE_BUCKETS >> 8


def _place(what: bytes, network: str, subject: bytes) -> Place:
    scope = sha256(network.encode())
    key = tagged_hash(b"dds/dht-key/" + what + b"/v1", scope, subject)[:DHT_KEY_BYTES]
    return Place(key, tagged_hash(b"dds/dht-seal/" + what + b"/v1", scope, subject))


def seal(place: Place, kind: Kind[R], signed: bytes) -> bytes:
    """version | nonce | XChaCha20-Poly1305(kind code | signed record), with the DHT key as associated data.

    The nonce is a hash of secret and plaintext, so the same record always seals to the same bytes and no two records
    share a nonce (the synthetic-IV construction; draft-irtf-cfrg-xchacha for the cipher).
    """
    plain = bytes((kind.code,)) + signed
    nonce = tagged_hash(b"dds/dht-nonce/v1", place.secret, plain)[:_NONCE_BYTES]
    return _SEAL_VERSION + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plain, place.key, nonce, place.secret)


def unseal(place: Place, value: bytes) -> tuple[int, bytes] | None:
    """Kind code and signed bytes, or None: a stranger's bytes under our key are nothing unusual."""
    least = len(_SEAL_VERSION) + _NONCE_BYTES + _AEAD_TAG_BYTES + 1
    if not least <= len(value) <= SEALED_BYTES_MAX or value[:1] != _SEAL_VERSION:
        return None
    nonce, body = value[1 : 1 + _NONCE_BYTES], value[1 + _NONCE_BYTES :]
    try:
        plain = crypto_aead_xchacha20poly1305_ietf_decrypt(body, place.key, nonce, place.secret)
    except CryptoError:
        return None
    return plain[0], plain[1:]
