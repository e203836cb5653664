"""Asking single nodes how they are, for `dds node status` and `dds doctor`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from dds.primitives.errors import DDSError, PeerProtocolError
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import KIB
from dds.transport.client import PeerClient

HEALTH_BYTES_MAX: Final = 64 * KIB
HEALTH_TIMEOUT_S: Final = 5.0
PROBES_AT_ONCE_MAX: Final = 32

Target = tuple[NodeID, str, int]


async def health(client: PeerClient, target: Target) -> dict[str, object]:
    """What the node says at /healthz.

    Raises:
        RemoteError: it cannot be reached, is another node than its NodeID says, or is not ready.
    """
    node, host, port = target
    client.learn(node, [(host, port)])
    try:
        raw = await client.get(node, "/healthz", max_bytes=HEALTH_BYTES_MAX, timeout_s=HEALTH_TIMEOUT_S)
        said = json.loads(raw)
    except ValueError:
        raise PeerProtocolError("its health is not JSON", peer=id_text(node)) from None
    if not isinstance(said, dict):
        raise PeerProtocolError("its health is not an object", peer=id_text(node))
    return said


async def health_of(network: str, targets: Sequence[Target]) -> list[dict[str, object] | DDSError]:
    """The health, or what went wrong, of every target in order."""
    room = asyncio.Semaphore(PROBES_AT_ONCE_MAX)

    async def ask(client: PeerClient, target: Target) -> dict[str, object] | DDSError:
        async with room:
            try:
                return await health(client, target)
            except DDSError as error:
                return error

    async with PeerClient(None, network=network) as client:
        return list(await asyncio.gather(*(ask(client, target) for target in targets)))
