"""Foreign bytes either decode to exactly one meaning or raise FormatError: nothing else, ever."""

from __future__ import annotations

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dds.content.block import Ref
from dds.content.dagpb import PBLink, PBNode, decode_node, encode_link, encode_node, link_bytes
from dds.content.nodes import parse_node
from dds.content.reader import list_directory, read_tree
from dds.content.unixfs import DataType, UnixFSData, decode_unixfs, encode_unixfs
from dds.primitives.cid import CID, DAG_PB, RAW, cid_from_digest, cid_of
from dds.primitives.errors import FormatError

UINTS = st.integers(0, (1 << 63) - 1)
CIDS = st.builds(cid_from_digest, st.binary(min_size=32, max_size=32), st.sampled_from([RAW, DAG_PB]))
LINKS = st.builds(PBLink, CIDS, st.none() | st.binary(max_size=40), st.none() | UINTS)
NODES = st.builds(PBNode, st.lists(LINKS, max_size=6).map(tuple), st.none() | st.binary(max_size=60))
DATAS = st.builds(
    UnixFSData,
    st.sampled_from(DataType),
    st.none() | st.binary(max_size=40),
    st.none() | UINTS,
    st.lists(UINTS, max_size=4).map(tuple),
    st.none() | UINTS,
    st.none() | UINTS,
)
PLAUSIBLE = st.builds(
    lambda links, data: encode_node(PBNode(links, encode_unixfs(data))), st.lists(LINKS, max_size=4).map(tuple), DATAS
)


@given(NODES)
def test_a_node_decodes_to_what_was_encoded(node: PBNode) -> None:
    assert decode_node(encode_node(node)) == node


@given(CIDS, st.binary(max_size=300), UINTS)
def test_a_link_takes_as_many_bytes_as_computed(cid: CID, name: bytes, tsize: int) -> None:
    assert len(encode_link(PBLink(cid, name, tsize))) == link_bytes(len(name), tsize)


@given(DATAS)
def test_unixfs_data_decode_to_what_was_encoded(data: UnixFSData) -> None:
    assert decode_unixfs(encode_unixfs(data)) == data


def mutated(block: bytes, at: int, value: int, cut: int) -> bytes:
    changed = bytearray(block)
    if changed:
        changed[at % len(changed)] = value
    return bytes(changed[: len(changed) - cut % 8])


@settings(max_examples=400)
@given(st.binary(max_size=200) | NODES.map(encode_node), UINTS, st.integers(0, 255), st.integers(0, 7))
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 0, 0x12, 0)
@example(b"\x0a", 0, 0x0A, 0)
def test_only_canonical_bytes_decode(block: bytes, at: int, value: int, cut: int) -> None:
    with contextlib.suppress(FormatError):
        hostile = mutated(block, at, value, cut)
        assert encode_node(decode_node(hostile)) == hostile


@settings(max_examples=400)
@given(st.binary(max_size=100) | DATAS.map(encode_unixfs), UINTS, st.integers(0, 255), st.integers(0, 7))
def test_hostile_unixfs_data_raise_nothing_but_format_errors(raw: bytes, at: int, value: int, cut: int) -> None:
    with contextlib.suppress(FormatError):
        decode_unixfs(mutated(raw, at, value, cut))


@settings(max_examples=400)
@given(st.binary(max_size=200) | PLAUSIBLE, UINTS, st.integers(0, 255), st.integers(0, 7), st.sampled_from([RAW, DAG_PB]))
def test_a_reader_of_hostile_blocks_raises_nothing_but_format_errors(
    block: bytes, at: int, value: int, cut: int, codec: int
) -> None:
    hostile = mutated(block, at, value, cut)
    cid = cid_of(hostile, codec)
    with contextlib.suppress(FormatError):
        parse_node(cid, hostile)
    for make in (read_tree, list_directory):
        reader = make(Ref(cid))
        with contextlib.suppress(FormatError):
            for _ in range(4):  # a few levels, each block taken for every child
                for request in reader.requests():
                    reader.receive(request, hostile)
                list(reader.events())
