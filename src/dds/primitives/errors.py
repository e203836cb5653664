"""The one error tree of DDS.

    DDSError
    |- LocalError            our own side, or what the user gave us
    |  |- InputError         a bad argument, path or identifier (exit code 2)
    |  |- LimitError         a named limit of ours was exceeded
    |  |- StorageError       a disk said no
    |  |  |- DiskFullError   quota or device is full
    |  |  |- CorruptError    bytes at rest fail their checksum
    |  |- SourceChangedError a file changed while it was read
    |  `- ConfigError        configuration or home directory is unusable
    |- RemoteError           a peer's fault; always names the peer
    |  |- PeerUnreachable    could not be dialled, or went away
    |  |- PeerTimeout        answered too slowly
    |  |- PeerRefused        answered with an error of its own
    |  |- PeerProtocolError  broke the protocol
    |  `- BadBytesError      sent bytes that fail their hash
    |- FormatError           foreign bytes that do not parse (a record, a block, a manifest)
    |  |- UnsupportedVersion a version this release does not know
    |  `- IntegrityError     parses, but a hash or signature does not hold
    `- UnavailableError      the network cannot do it now
       |- PaymentRequired   a paid node was asked for what nobody pays for
       |- NotFoundError      nobody known has it
       |- NotEnoughNodes     too few nodes for the geometry
       |- NotEnoughFragments fewer than k fragments could be had
       `- LedgerRefused      the ledger's rules refuse a transaction

Every error carries a stable `code` (for `--json` and peers), a message for people and, where there is something to do about
it, a `hint`. A failed proof is a verdict, not an exception: `assert` is for our own bugs.
"""

from __future__ import annotations

from typing import ClassVar


class DDSError(Exception):
    """Base of every error that DDS raises on purpose."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready form: code, message, hint and the error's own fields (bytes as hex, what JSON lacks as text)."""
        own: dict[str, object] = {"code": self.code, "message": self.message, "hint": self.hint}
        return {**own, **{name: _json_ready(value) for name, value in self.fields.items()}, **own}


def _json_ready(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.hex()
        case dict():
            return {str(_json_ready(key)): _json_ready(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_json_ready(each) for each in value]
    return str(value)


class LocalError(DDSError):
    code = "local"


class InputError(LocalError):
    code = "input"


class LimitError(LocalError):
    code = "limit"


class StorageError(LocalError):
    code = "storage"


class DiskFullError(StorageError):
    code = "disk-full"


class CorruptError(StorageError):
    code = "corrupt"


class SourceChangedError(LocalError):
    code = "source-changed"


class ConfigError(LocalError):
    code = "config"


class RemoteError(DDSError):
    """A peer's fault. `peer` is the NodeID's text form or the address that was dialled."""

    code = "remote"

    def __init__(self, message: str, *, peer: str, hint: str | None = None, **fields: object) -> None:
        super().__init__(message, hint=hint, peer=peer, **fields)
        self.peer = peer


class PeerUnreachable(RemoteError):
    code = "peer-unreachable"


class PeerTimeout(RemoteError):
    code = "peer-timeout"


class PeerRefused(RemoteError):
    """The peer answered with an error; `remote_code` is the code it gave, `status` the HTTP status."""

    code = "peer-refused"

    def __init__(self, message: str, *, peer: str, status: int, remote_code: str, hint: str | None = None) -> None:
        super().__init__(message, peer=peer, hint=hint, status=status, remote_code=remote_code)
        self.status = status
        self.remote_code = remote_code


class PeerProtocolError(RemoteError):
    code = "peer-protocol"


class BadBytesError(RemoteError):
    code = "bad-bytes"


class FormatError(DDSError):
    code = "format"


class UnsupportedVersion(FormatError):
    code = "unsupported-version"


class IntegrityError(FormatError):
    code = "integrity"


class UnavailableError(DDSError):
    code = "unavailable"


class PaymentRequired(UnavailableError):
    """A paid node stores only what the ledger gave it, and serves beyond its allowance only who pays."""

    code = "payment-required"


class NotFoundError(UnavailableError):
    code = "not-found"


class NotEnoughNodes(UnavailableError):
    code = "not-enough-nodes"


class NotEnoughFragments(UnavailableError):
    code = "not-enough-fragments"


class LedgerRefused(UnavailableError):
    """`refusal` is the rule's own code: "insufficient-balance" and the like."""

    code = "ledger-refused"

    def __init__(self, refusal: str, message: str, *, hint: str | None = None, **fields: object) -> None:
        super().__init__(message, hint=hint, refusal=refusal, **fields)
        self.refusal = refusal
