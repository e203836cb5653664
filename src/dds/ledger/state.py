"""The ledger's state as rules see it: typed tables over a key-value base, with a transaction's changes on top.

Decides when changes become visible: at once to the rule itself, to the block when the transaction is kept, to the base when the
engine takes `changes()` and makes them durable. Knows no rule. Nothing here does I/O: the base is handed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import msgspec

from dds.ledger.events import Event
from dds.ledger.faults import Refused
from dds.ledger.params import Params
from dds.ledger.records import BY_PREFIX, CHAIN, LANES, NODES, NUMBERS, PARAMS, Chain, Node, Table, V, number_key

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[bytes, msgspec.msgpack.Decoder[Any]] = {
    prefix: msgspec.msgpack.Decoder(table.kind) for prefix, table in BY_PREFIX.items()
}


class Base(Protocol):
    """Committed entries: canonical bytes by key."""

    def get(self, key: bytes) -> bytes | None: ...


class State:
    """One ledger. Not safe for threads: one block is applied at a time."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._hot: dict[bytes, Any] = {}  # decoded entries of hot tables, as of the block
        self._block: dict[bytes, Any] = {}  # changed in this block; None: deleted
        self._tx: dict[bytes, Any] = {}  # changed in this transaction
        self._events: list[Event] = []

    # -- entries ------------------------------------------------------------------------------------------------------------

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None:
        key = table.prefix + identifier
        for layer in (self._tx, self._block, self._hot):
            if key in layer:
                return cast("V | None", layer[key])
        raw = self._base.get(key)
        value = None if raw is None else cast(V, _decoders[table.prefix].decode(raw))
        if table.hot and value is not None:
            self._hot[key] = value
        return value

    def get(self, table: Table[V], identifier: bytes, code: str, what: str) -> V:
        """
        Raises:
            Refused: there is no such entry; `code` and `what` say so.
        """
        value = self.find(table, identifier)
        if value is None:
            raise Refused(code, f"there is no {what} {identifier.hex()[:16]}")
        return value

    def put(self, table: Table[V], identifier: bytes, value: V) -> None:
        self._tx[table.prefix + identifier] = value

    def delete(self, table: Table[V], identifier: bytes) -> None:
        self._tx[table.prefix + identifier] = None

    # -- what every rule asks for -------------------------------------------------------------------------------------------

    @property
    def params(self) -> Params:
        params = self.find(PARAMS)
        assert params is not None, "genesis was applied"
        return params

    @property
    def chain(self) -> Chain:
        return self.find(CHAIN) or Chain()

    def set_chain(self, **changes: Any) -> None:
        self.put(CHAIN, b"", msgspec.structs.replace(self.chain, **changes))

    def set_lane(self, role: str, **changes: Any) -> None:
        lanes = zip(LANES, self.chain.lanes, strict=True)
        self.set_chain(lanes=tuple(msgspec.structs.replace(lane, **changes) if each == role else lane for each, lane in lanes))

    @property
    def epoch(self) -> int:
        return self.chain.epoch

    def node(self, number: int) -> Node:
        """
        Raises:
            Refused: no node has this number.
        """
        return self.get(NODES, number_key(number), "no-such-node", "node")

    def put_node(self, node: Node) -> None:
        self.put(NODES, number_key(node.number), node)

    def node_number(self, node_id: bytes) -> int | None:
        found = self.find(NUMBERS, node_id)
        return None if found is None else found.number

    def nodes(self) -> Iterator[Node]:
        """Every node ever registered, by number."""
        for number in range(self.chain.nodes):
            yield self.node(number)

    # -- what happened ------------------------------------------------------------------------------------------------------

    def emit(self, name: str, **fields: Any) -> None:
        self._events.append(Event(name, self.epoch, **fields))

    # -- transactions and blocks --------------------------------------------------------------------------------------------

    def keep(self) -> list[Event]:
        """Make the transaction's changes part of the block; its events."""
        self._block.update(self._tx)
        for key, value in self._tx.items():
            if key in self._hot:
                if value is None:
                    del self._hot[key]
                else:
                    self._hot[key] = value
        self._tx.clear()
        events, self._events = self._events, []
        return events

    def drop(self) -> None:
        """Take the transaction's changes back."""
        self._tx.clear()
        self._events.clear()

    def changes(self) -> dict[bytes, bytes | None]:
        """What the block changed, encoded, in key order; the engine hands it to the tree and its disk."""
        assert not self._tx, "a transaction is open"
        return {key: None if value is None else _encoder.encode(value) for key, value in sorted(self._block.items())}

    def committed(self) -> None:
        """The base has the changes now."""
        self._block.clear()

    def abandon(self) -> None:
        """Forget the block: what was only proposed, or could not be made durable."""
        self.drop()
        for key in self._block:
            self._hot.pop(key, None)
        self._block.clear()
