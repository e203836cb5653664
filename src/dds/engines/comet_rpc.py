"""Handing transactions to the local CometBFT: JSON-RPC over HTTP, in batches that its default limits allow.

Decides how transactions are put into requests. Not what becomes of them: `broadcast_tx_async` only takes them into the queue
for CheckTx, in order; the verdict and the block come to the application, which is this very process. (`broadcast_tx_sync` would
wait for CometBFT's flush timer, 20 ms for every transaction.)
Source: CometBFT v0.38, docs/rpc; rpc/jsonrpc/server/http_json_handler.go.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from dds.primitives.errors import UnavailableError
from dds.primitives.units import KIB, MIB

BATCH_MAX: Final = 10  # CometBFT's default of rpc.max_request_batch_size
BATCH_BYTES_MAX: Final = 600 * KIB  # of transactions: in base64 below its default rpc.max_body_bytes of 1,000,000
ANSWER_BYTES_MAX: Final = 4 * MIB
REQUEST_TIMEOUT_S: Final = 10.0
IN_CACHE: Final = "tx already exists in cache"  # mempool/errors.go: it waits for a block, or is in one


class _Fault(msgspec.Struct):
    message: str
    data: str = ""


class _Answer(msgspec.Struct):
    id: int = -1
    result: Any = None
    error: _Fault | None = None


_answers = msgspec.json.Decoder(list[_Answer] | _Answer)


class CometRpc:
    """`address`: http://host:port."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def broadcast(self, raws: Sequence[bytes]) -> set[int]:
        """Hand transactions over, in order.

        Returns:
            the places of those that CometBFT has, or had, already: it will not ask about them again.

        Raises:
            UnavailableError: CometBFT is not there, or takes no more; some may have been taken.
        """
        known: set[int] = set()
        for batch in _batches(raws):
            calls = [_call(number, "broadcast_tx_async", {"tx": base64.b64encode(raw).decode()}) for number, raw in batch]
            for answer in await self._post(calls):
                if answer.error is None:
                    continue
                problem = f"{answer.error.message}: {answer.error.data}"
                if IN_CACHE not in problem:
                    raise UnavailableError(f"CometBFT does not take a transaction: {problem}")
                known.add(answer.id)
        return known

    async def ask(self, method: str) -> Any:
        """The result of a call without parameters.

        Raises:
            UnavailableError: no answer, or an error.
        """
        (answer,) = await self._post([_call(0, method, {})])
        if answer.error is not None:
            raise UnavailableError(f"CometBFT: {method}: {answer.error.message}: {answer.error.data}")
        return answer.result

    async def _post(self, calls: Sequence[dict[str, object]]) -> list[_Answer]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S))
        try:
            async with self._session.post(self._address, json=calls) as response:
                answers = _answers.decode(await _read(response))
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:  # a timeout is an OSError
            raise UnavailableError(f"CometBFT at {self._address} does not answer: {error or type(error).__name__}") from None
        answers = answers if isinstance(answers, list) else [answers]
        if len(answers) != len(calls) and all(answer.error is None for answer in answers):
            raise UnavailableError(f"CometBFT at {self._address} answered {len(answers)} of {len(calls)} calls")
        return answers


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _call(number: int, method: str, params: dict[str, object]) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def _batches(raws: Sequence[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered, at most BATCH_MAX and BATCH_BYTES_MAX each; a larger transaction goes alone."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for number, raw in enumerate(raws):
        if batch and (len(batch) == BATCH_MAX or size + len(raw) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append((number, raw))
        size += len(raw)
    if batch:
        yield batch
