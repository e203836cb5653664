"""The reader against DAGs that no honest writer makes, and its bounds."""

from __future__ import annotations

import pytest

from dds.content.block import Ref
from dds.content.builder import FileBuilder
from dds.content.dagpb import PBLink, PBNode, encode_node
from dds.content.events import Close, Data, Entry, OpenDirectory, OpenFile
from dds.content.expand import FILE_DEPTH_MAX
from dds.content.hamt import ShardBuilder, hash_order, name_hash
from dds.content.reader import DagReader, Window, list_directory, read_file, read_tree, resolve, run
from dds.content.unixfs import DIRECTORY_DATA, MURMUR3_X64_64, DataType, UnixFSData, encode_unixfs
from dds.primitives.cid import CID, DAG_CBOR, DAG_PB, RAW, cid_of
from dds.primitives.errors import FormatError, InputError
from dds.primitives.units import MIB
from tests.content_dags import Store, stored, tree_of


class Forge:
    """Makes blocks that match their CIDs and nothing else."""

    def __init__(self) -> None:
        self.blocks: dict[CID, bytes] = {}

    def put(self, data: bytes, codec: int = DAG_PB) -> CID:
        cid = cid_of(data, codec)
        self.blocks[cid] = data
        return cid

    def node(self, links: list[PBLink], data: UnixFSData | bytes) -> CID:
        return self.put(encode_node(PBNode(tuple(links), data if isinstance(data, bytes) else encode_unixfs(data))))

    def file(self, links: list[PBLink], sizes: list[int], filesize: int | None = None) -> CID:
        total = sum(sizes) if filesize is None else filesize
        return self.node(links, UnixFSData(DataType.FILE, filesize=total, blocksizes=tuple(sizes)))

    def fetch(self, ref: Ref) -> bytes:
        return self.blocks[ref.cid]

    def read(self, root: CID) -> list[object]:
        return list(run(read_tree(Ref(root)), self.fetch))


@pytest.fixture
def forge() -> Forge:
    return Forge()


def leaf(forge: Forge, data: bytes = b"abc", tsize: int | None = None, name: bytes = b"") -> PBLink:
    return PBLink(forge.put(data, RAW), name, len(data) if tsize is None else tsize)


def test_a_file_whose_size_is_not_the_sum_of_its_parts_is_refused(forge: Forge) -> None:
    with pytest.raises(FormatError, match="sum"):
        forge.read(forge.file([leaf(forge)], [3], filesize=4))


def test_a_leaf_of_another_size_than_its_parent_says_is_refused(forge: Forge) -> None:
    with pytest.raises(FormatError, match="size"):
        forge.read(forge.file([PBLink(forge.put(b"abc", RAW), b"", None)], [4]))


def test_a_file_with_more_links_than_sizes_is_refused(forge: Forge) -> None:
    with pytest.raises(FormatError, match="block sizes"):
        forge.read(forge.file([leaf(forge), leaf(forge)], [3]))


def test_a_file_with_a_named_link_is_refused(forge: Forge) -> None:
    with pytest.raises(FormatError, match="named"):
        forge.read(forge.file([leaf(forge, name=b"x")], [3]))


def test_empty_parts_of_a_file_are_refused_because_bombs_are_made_of_them(forge: Forge) -> None:
    with pytest.raises(FormatError, match="empty part"):
        forge.read(forge.file([leaf(forge, b"")] * 3, [0, 0, 0]))


def test_a_wrong_tsize_is_refused(forge: Forge) -> None:
    inner = forge.file([leaf(forge)], [3])
    with pytest.raises(FormatError, match="Tsize"):
        forge.read(forge.file([PBLink(inner, b"", 999)], [3]))


def test_a_missing_tsize_is_read_without_positions(forge: Forge) -> None:
    first, second = PBLink(forge.put(b"abc", RAW), b"", None), PBLink(forge.put(b"de", RAW), b"", 2)
    reader = read_tree(Ref(forge.file([first, second], [3, 2])))
    asked = []
    while not reader.done:
        for request in reader.requests():
            asked.append(request.ref)
            reader.receive(request, forge.fetch(request.ref))
        list(reader.events())
    assert [(ref.start, ref.end) for ref in asked] == [(0, None), (0, None), (None, None)]


def test_sizes_that_overflow_63_bits_are_refused(forge: Forge) -> None:
    huge = (1 << 63) - 1
    inner = PBLink(forge.put(b"anything", DAG_PB), b"", huge)
    with pytest.raises(FormatError, match="63 bits"):
        forge.read(forge.node([PBLink(inner.cid, b"a", huge)], DIRECTORY_DATA))


def test_a_file_that_is_too_deep_is_refused(forge: Forge) -> None:
    link, size = leaf(forge), 3
    for _ in range(FILE_DEPTH_MAX + 2):
        link = PBLink(forge.file([link], [size]), b"", None)
    with pytest.raises(FormatError, match="deeper"):
        forge.read(link.cid)


def test_a_directory_as_part_of_a_file_is_refused(forge: Forge) -> None:
    directory = forge.node([], DIRECTORY_DATA)
    with pytest.raises(FormatError, match="not a file"):
        forge.read(forge.file([PBLink(directory, b"", None)], [4]))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"../x", b"nul\x00", b"x" * 1021])
def test_names_that_lead_elsewhere_are_refused(forge: Forge, name: bytes) -> None:
    with pytest.raises(FormatError, match="entry"):
        forge.read(forge.node([leaf(forge, name=name)], DIRECTORY_DATA))


def test_the_same_name_twice_is_refused(forge: Forge) -> None:
    with pytest.raises(FormatError, match="twice"):
        forge.read(forge.node([leaf(forge, name=b"a"), leaf(forge, b"other", name=b"a")], DIRECTORY_DATA))


@pytest.mark.parametrize("fanout", [0, 1, 4, 100, 2048, 1 << 40])
def test_an_absurd_fanout_is_refused(forge: Forge, fanout: int) -> None:
    data = UnixFSData(DataType.HAMT_SHARD, data=b"", hash_type=MURMUR3_X64_64, fanout=fanout)
    with pytest.raises(FormatError, match="fanout"):
        forge.read(forge.node([], data))


def shard(forge: Forge, bucket: int, name: bytes, child: PBLink) -> CID:
    data = UnixFSData(DataType.HAMT_SHARD, data=(1 << bucket).to_bytes(32, "big"), hash_type=MURMUR3_X64_64, fanout=256)
    return forge.node([PBLink(child.cid, b"%02X" % bucket + name, child.tsize)], data)


def test_an_entry_in_a_bucket_its_hash_does_not_lead_to_is_refused(forge: Forge) -> None:
    right = name_hash(b"name")[0]
    assert forge.read(shard(forge, right, b"name", leaf(forge)))
    with pytest.raises(FormatError, match="bucket"):
        forge.read(shard(forge, right ^ 1, b"name", leaf(forge)))


def test_a_chain_of_shards_deeper_than_the_hash_is_refused(forge: Forge) -> None:
    cid = shard(forge, 0, b"x", leaf(forge))
    for _ in range(9):
        cid = shard(forge, 0, b"", PBLink(cid, b"", None))
    with pytest.raises(FormatError, match="deeper"):
        forge.read(cid)


def test_a_root_of_another_codec_is_refused_by_its_name(forge: Forge) -> None:
    with pytest.raises(FormatError, match="dag-cbor"):
        forge.read(forge.put(b"\xa0", DAG_CBOR))


def test_metadata_of_other_writers_is_read_over(forge: Forge) -> None:
    data = b"\x08\x01" + b"\x38\xed\x03" + b"\x42\x08\x08\x80\x01\x15\x01\x00\x00\x00"
    assert forge.read(forge.node([leaf(forge, name=b"a")], data))
    with pytest.raises(FormatError, match="mtime"):
        forge.read(forge.node([], b"\x08\x01\x42\x02\x10\x01"))


def test_inline_bytes_of_other_writers_come_before_the_links(forge: Forge) -> None:
    data = UnixFSData(DataType.FILE, data=b"in", filesize=5, blocksizes=(3,))
    events = forge.read(forge.node([leaf(forge)], data))
    assert b"".join(event.data for event in events if isinstance(event, Data)) == b"inabc"


def test_a_range_of_a_directory_is_refused() -> None:
    store, root = stored({b"a": b"x"})
    with pytest.raises(InputError, match="directory"):
        list(run(read_file(root, 0, 1), store.fetch))


def test_a_listing_shows_entries_without_fetching_them() -> None:
    store, root = stored({b"a": b"xyz", b"d": {b"inner": b"y"}})
    events = list(run(list_directory(root), lambda ref: store.blocks[ref.cid] if ref == root else pytest.fail("fetched")))
    assert [event.name for event in events if isinstance(event, Entry)] == [b"a", b"d"]
    assert isinstance(events[0], OpenDirectory)
    assert events[-1] == Close()


def test_a_listing_of_a_file_shows_the_file_unread() -> None:
    store, root = stored(b"twenty bytes of text", chunk_bytes=5)
    events = list(run(list_directory(root), lambda ref: store.blocks[ref.cid] if ref == root else pytest.fail("fetched")))
    assert events == [OpenFile(b"", 20, root), Close()]


def resolved(store: Store, root: Ref, *path: bytes) -> Ref:
    steps = resolve(root, path)
    try:
        ref = next(steps)
        while True:
            ref = steps.send(store.fetch(ref))
    except StopIteration as stop:
        result: Ref = stop.value
        return result


def test_a_path_leads_to_what_a_walk_finds_there() -> None:
    store, root = stored({b"a": {b"b": {b"c": b"deep"}}, b"l": "a"})
    assert tree_of(run(read_tree(resolved(store, root, b"a", b"b")), store.fetch)) == {b"c": b"deep"}
    assert resolved(store, root) == root
    with pytest.raises(InputError, match="a/x"):
        resolved(store, root, b"a", b"x")
    with pytest.raises(InputError, match="a/b/c is a file"):
        resolved(store, root, b"a", b"b", b"c", b"d")
    with pytest.raises(InputError, match="symbolic link"):
        resolved(store, root, b"l", b"b")


def test_a_name_that_is_not_in_a_sharded_directory_is_not_found() -> None:
    store = Store()
    names = hash_order([b"%d" % at for at in range(100)])
    shards = ShardBuilder(store.out, names)
    for _ in names:
        file = FileBuilder(store.out)
        file.add(b"x")
        shards.add(file.finish())
    built = shards.finish()
    with pytest.raises(InputError, match="no entry"):
        resolved(store, Ref(built.cid), b"100")


def held(reader: DagReader, store: Store, limit: int) -> int:
    """Most bytes under way at once when nothing is delivered until everything requested has arrived."""
    most = 0
    while not reader.done:
        requests = reader.requests()
        under_way = 0
        while requests:
            under_way += sum(len(store.fetch(request.ref)) for request in requests)
            for request in requests:
                reader.receive(request, store.fetch(request.ref))
            requests = reader.requests()
        most = max(most, under_way)
        assert most <= limit
        list(reader.events())
    return most


def test_a_large_file_is_read_ahead_within_the_window_and_no_further() -> None:
    store = Store()
    file = FileBuilder(store.out)
    for at in range(2100):
        file.add(at.to_bytes(4, "big") * 1000)
    built = file.finish()
    window = Window(bytes_max=MIB // 4)
    most = held(read_file(Ref(built.cid, 0, built.tsize), window=window), store, 2 * window.bytes_max)
    assert most > window.bytes_max // 2


def test_many_small_files_are_fetched_many_at_a_time() -> None:
    store, root = stored({b"%d" % at: b"small %d" % at for at in range(500)})
    reader = read_tree(root)
    (first,) = reader.requests()
    reader.receive(first, store.fetch(first.ref))
    assert len(reader.requests()) > 200


def test_a_directory_that_names_itself_over_and_over_is_walked_lazily(forge: Forge) -> None:
    cid = forge.put(b"x", RAW)
    for _ in range(40):
        cid = forge.node([PBLink(cid, b"%d" % at, None) for at in range(10)], DIRECTORY_DATA)
    reader = read_tree(Ref(cid), Window(requests_max=8))
    for _ in range(50):  # 10^40 entries, yet no step does more than the window allows
        requests = reader.requests()
        assert len(requests) <= 9
        for request in requests:
            reader.receive(request, forge.fetch(request.ref))
        list(reader.events())
