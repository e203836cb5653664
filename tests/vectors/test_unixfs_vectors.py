"""ContentIDs that other software gives for the same trees (tests/vectors/README.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.content.block import Built
from dds.content.builder import (
    BASIC_DIRECTORY_BYTES_MAX,
    DirectoryBuilder,
    FileBuilder,
    Output,
    PostOrder,
    basic_directory_bytes,
    build_directory,
    build_symlink,
    fixed_file_tsize,
    needs_shards,
)
from dds.content.chunking import FixedChunker
from dds.primitives.cid import RAW, cid_of, cid_text
from dds.primitives.errors import SourceChangedError
from dds.storage.source import SourceOptions, build_dag
from tests.content_trees import Node, children, file_bytes, keystream_slices, kubo_names, materialize

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("unixfs_v1_2025.json").read_text())
ON_DISK_ENTRIES_MAX = 100


def slices(node: Node) -> Iterator[bytes]:
    return iter((file_bytes(node),)) if "text" in node else keystream_slices(node["stream"], node["size"])


def build_file(out: Output, node: Node) -> Built:
    chunker, builder = FixedChunker(), FileBuilder(out)
    for data in slices(node):
        for chunk in chunker.feed(data):
            builder.add(chunk)
    for chunk in chunker.finish():
        builder.add(chunk)
    return builder.finish()


def build(out: Output, node: Node) -> Built:
    if "symlink" in node:
        return build_symlink(out, node["symlink"].encode())
    if "many" in node:  # all entries are the same subtree
        child = build(out, node["of"])
        return build_directory(out, {name.encode(): child for name in children(node)})
    if "dir" in node:
        return build_directory(out, {name.encode(): build(out, child) for name, child in node["dir"].items()})
    return build_file(out, node)


def discard() -> PostOrder:
    return PostOrder(lambda block, position: None)


def entries(node: Node) -> int:
    return sum(1 + entries(child) for child in children(node).values()) if {"dir", "many"} & node.keys() else 0


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_content_ids_and_sizes_are_those_of_boxo(case: dict[str, Any]) -> None:
    built = build(discard(), case["tree"])
    assert (cid_text(built.cid), built.tsize) == (case["cid"], case["tsize"])


@pytest.mark.parametrize("case", VECTORS["published"], ids=lambda case: case["name"])
def test_content_ids_are_the_published_ones(case: dict[str, Any]) -> None:
    built = build(discard(), case["tree"])
    assert cid_text(built.cid) == case["cid"]
    if "stream" in case["tree"]:
        assert built.tsize == fixed_file_tsize(case["tree"]["size"])


SMALL = [
    case for case in VECTORS["cases"] if entries(case["tree"]) <= ON_DISK_ENTRIES_MAX and case["tree"].get("size", 0) < 1 << 26
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case["name"])
def test_trees_read_from_disk_get_the_same_content_ids(case: dict[str, Any], tmp_path: Path) -> None:
    materialize(case["tree"], tmp_path / "root")
    tree = build_dag(tmp_path / "root", SourceOptions(), lambda block, position: None)
    assert (cid_text(tree.root.cid), tree.root.tsize) == (case["cid"], case["tsize"])


@pytest.mark.parametrize(
    ("last_length", "size", "cid"),
    [
        (21, 262_144, "bafybeic3h7rwruealwxkacabdy45jivq2crwz6bufb5ljwupn36gicplx4"),
        (22, 262_145, "bafybeiegvuterwurhdtkikfhbxcldohmxp566vpjdofhzmnhv6o4freidu"),
    ],
)
def test_a_directory_is_sharded_from_one_byte_over_the_threshold(last_length: int, size: int, cid: str) -> None:
    child = Built(cid_of(b"x", RAW), 1, 1)
    names = kubo_names(4766, 11, last_length, "hamt-unixfs-v1-2025")
    listed = [(name, child.tsize) for name in names]
    assert basic_directory_bytes(listed) == size
    assert needs_shards(listed) == (size > BASIC_DIRECTORY_BYTES_MAX)
    assert cid_text(build_directory(discard(), dict.fromkeys(names, child)).cid) == cid


def test_a_directory_builder_told_the_wrong_kind_refuses_at_the_end() -> None:
    child = Built(cid_of(b"x", RAW), 1, 1)
    builder = DirectoryBuilder(discard(), [b"a", b"b"], sharded=True)
    for name in builder.order:
        builder.add(name, child)
    with pytest.raises(SourceChangedError):
        builder.finish()
