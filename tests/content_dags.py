"""Small content DAGs in memory, for tests: nested dicts of bytes (files), str (symbolic links) and dicts (directories)."""

from __future__ import annotations

from collections.abc import Iterable

from dds.content.block import Block, Built, Ref
from dds.content.builder import DirectoryBuilder, FileBuilder, Output, PostOrder, SizeOnly, build_symlink, needs_shards
from dds.content.events import Close, Data, Event, OpenDirectory, OpenFile, Symlink
from dds.primitives.cid import CID

Tree = bytes | str | dict[bytes, "Tree"]


class Store:
    """Blocks by CID, and the positions at which they were emitted."""

    def __init__(self) -> None:
        self.blocks: dict[CID, bytes] = {}
        self.positions: list[tuple[int, CID, int]] = []
        self.out = PostOrder(self._take)

    def _take(self, block: Block, position: int) -> None:
        self.blocks[block.cid] = block.data
        self.positions.append((position, block.cid, len(block.data)))

    def fetch(self, ref: Ref) -> bytes:
        return self.blocks[ref.cid]


def build_tree(out: Output, tree: Tree, chunk_bytes: int) -> Built:
    """Build in the order that positions ask for."""
    if isinstance(tree, str):
        return build_symlink(out, tree.encode())
    if isinstance(tree, bytes):
        file = FileBuilder(out)
        for at in range(0, len(tree), chunk_bytes):
            file.add(tree[at : at + chunk_bytes])
        return file.finish()
    sizes = [(name, build_tree(SizeOnly(), below, chunk_bytes).tsize) for name, below in tree.items()]
    directory = DirectoryBuilder(out, tree, sharded=needs_shards(sizes))
    for name in directory.order:
        directory.add(name, build_tree(out, tree[name], chunk_bytes))
    return directory.finish()


def stored(tree: Tree, chunk_bytes: int = 10) -> tuple[Store, Ref]:
    store = Store()
    built = build_tree(store.out, tree, chunk_bytes)
    return store, Ref(built.cid, 0, built.tsize)


def tree_of(events: Iterable[Event]) -> Tree:
    """The tree that a stream of events describes; checks that it is well nested and that files have their size."""
    holder: dict[bytes, Tree] = {}
    stack: list[tuple[bytes, dict[bytes, Tree]]] = [(b"", holder)]
    file: tuple[bytes, int, list[bytes]] | None = None
    for event in events:
        match event:
            case OpenFile():
                assert file is None
                file = (event.name, event.size, [])
            case Data():
                assert file is not None
                file[2].append(event.data)
            case Close() if file is not None:
                name, size, parts = file
                stack[-1][1][name] = b"".join(parts)
                assert len(b"".join(parts)) == size
                file = None
            case Close():
                name, below = stack.pop()
                stack[-1][1][name] = below
            case OpenDirectory():
                stack.append((event.name, {}))
            case Symlink():
                stack[-1][1][event.name] = event.target.decode()
            case _:
                raise AssertionError(event)
    assert file is None
    assert len(stack) == 1
    return holder[b""]
