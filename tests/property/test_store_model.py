"""The fragment store against a model of plain dictionaries: any sequence of operations, restarts and rebuilds included."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dds.primitives.errors import IntegrityError, NotFoundError
from dds.primitives.ids import FragmentRoot
from dds.storage.fragment_store import FragmentStore
from dds.storage.fsck import fsck, rebuild_index
from dds.storage.image import build_image
from dds.storage.upkeep import Upkeep
from dds.wire.api import MANIFESTS_PER_CONTENT_MAX
from tests.store_kit import SMALL, Clock, content_of, fast_directory, let_pass, manifest_of, open_store, raw_of, segment_of

TTL_MS, WINDOW_MS = 40, 60
CONFIG = replace(SMALL, pack_bytes=10_000, packed_bytes_max=3000, staged_ttl_ms=TTL_MS, trash_window_ms=WINDOW_MS)
CONTENTS = [content_of(number, size) for number, size in enumerate((0, 50, 1000, 2999, 3000, 4500))]
CONTENTS.append(CONTENTS[1] + bytes(7))  # the root of CONTENTS[1], and another size
PICK = st.integers(0, len(CONTENTS) - 1)
UPLOADS = st.sampled_from([(bytes([number]) * 16, b"owner %d" % (number % 2)) for number in range(3)])
SEGMENTS = [(1,), (2, 4), (3, 5), (6, 2), (4, 4), (0, 1)]
SEGMENT = st.integers(0, len(SEGMENTS) - 1)


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = fast_directory(Path(tempfile.gettempdir()))
        self.path = Path(self.directory.__enter__()) / "store"
        self.clock = Clock()
        self.store = self.open()
        self.staged: dict[tuple[bytes, bytes, int], int] = {}  # (upload, owner, content) -> since
        self.held: dict[tuple[int, int], int | None] = {}  # (segment, index) -> None, or released since
        self.manifests: dict[int, dict[int, int]] = {}  # content -> publisher -> created

    def open(self) -> FragmentStore:
        return open_store(self.path, config=CONFIG, clock=self.clock)

    def staged_roots(self, upload: bytes, owner: bytes) -> set[FragmentRoot]:
        return {build_image(CONTENTS[pick]).root for u, o, pick in self.staged if (u, o) == (upload, owner)}

    @rule(upload=UPLOADS, picks=st.lists(PICK, min_size=1, max_size=4))
    def stage(self, upload: tuple[bytes, bytes], picks: list[int]) -> None:
        had = self.staged_roots(*upload)
        roots = self.store.stage_many(*upload, [CONTENTS[pick] for pick in picks])
        assert roots == [build_image(CONTENTS[pick]).root for pick in picks]
        for pick, root in zip(picks, roots, strict=True):
            since = self.store.time.now_ms()
            if root in had:  # the first stamp stays
                same = [at for (u, o, other), at in self.staged.items() if (u, o) == upload and _root(other) == root]
                since = same[0]
            self.staged.setdefault((*upload, pick), since)
            had.add(root)

    @rule(upload=UPLOADS)
    def abort(self, upload: tuple[bytes, bytes]) -> None:
        self.store.abort(*upload)
        self.staged = {key: at for key, at in self.staged.items() if key[:2] != upload}

    @rule(upload=UPLOADS, segment=SEGMENT, index=st.integers(0, 1), inline=st.sets(st.integers(0, 1)))
    def commit(self, upload: tuple[bytes, bytes], segment: int, index: int, inline: set[int]) -> None:
        picks = SEGMENTS[segment]
        encoding = segment_of([CONTENTS[pick] for pick in picks], name=str(segment))
        carried = {_root(picks[at]) for at in inline if at < len(picks)}
        here = self.staged_roots(*upload) | carried
        here |= {_root(pick) for (other, _) in self.held if other == segment for pick in SEGMENTS[other]}
        sizes = self.longest()
        ready = all(_root(pick) in here for pick in picks)
        long_enough = all(
            max(sizes.get(_root(pick), -1), len(CONTENTS[pick]) if _root(pick) in carried else -1) >= len(CONTENTS[pick])
            for pick in picks
        )
        try:
            self.store.commit(
                *upload,
                encoding,
                raw_of(encoding),
                index,
                [CONTENTS[picks[at]] for at in sorted(inline) if at < len(picks)],
                manifest_of(segment, 1, 1),
            )
        except NotFoundError:
            assert not ready
            return
        except IntegrityError:
            assert (ready, long_enough) == (True, False)
            return
        assert (ready, long_enough) == (True, True)
        roots = {_root(pick) for pick in picks}
        self.held[segment, index] = None
        self.staged = {key: at for key, at in self.staged.items() if key[:2] != upload or _root(key[2]) not in roots}
        self.manifests.setdefault(segment, {}).setdefault(1, 1)

    def longest(self) -> dict[FragmentRoot, int]:
        """The store keeps the longest of fragments with one root: how long is its own affair."""
        found = {_root(pick): self.store.find(_root(pick)) for pick in range(len(CONTENTS))}
        return {root: place[0] for root, place in found.items() if place is not None}

    @rule(segment=SEGMENT, index=st.integers(0, 1))
    def release(self, segment: int, index: int) -> None:
        encoding = segment_of([CONTENTS[pick] for pick in SEGMENTS[segment]], name=str(segment))
        live = (segment, index) in self.held and self.held[segment, index] is None
        assert self.store.release(encoding.segment_id, index) == live
        if live:
            self.held[segment, index] = self.store.time.now_ms()

    @rule(number=SEGMENT, publisher=st.integers(1, 7), created=st.integers(1, 9))
    def put_manifest(self, number: int, publisher: int, created: int) -> None:
        known = self.manifests.setdefault(number, {})
        has_room = len(known) < MANIFESTS_PER_CONTENT_MAX or publisher in known
        kept = has_room and known.get(publisher, created) <= created
        if kept:
            known[publisher] = created
        assert self.store.put_manifest(manifest_of(number, publisher, created)) == kept

    @rule(ms=st.integers(1, 70))
    def wait_and_sweep(self, ms: int) -> None:
        let_pass(self.store, self.clock, ms)
        while Upkeep(self.store).sweep_step(3).more:
            pass
        now = self.store.time.now_ms()
        self.staged = {key: at for key, at in self.staged.items() if at > now - TTL_MS}
        self.held = {key: at for key, at in self.held.items() if at is None or at > now - WINDOW_MS}

    @rule(steps=st.integers(1, 6), budget=st.sampled_from([1, 3000, 50_000]))
    def compact(self, steps: int, budget: int) -> None:
        for _ in range(steps):
            Upkeep(self.store).compact_step(budget)
        assert Upkeep(self.store).scrub_step(4000) == []

    @rule(jump=st.sampled_from([-(10**11), 10**11, 0]))
    def restart(self, jump: int) -> None:
        self.store.close()
        self.clock.now_ms += jump
        self.store = self.open()
        assert self.store.recovery.is_sound

    @rule()
    def crash(self) -> None:
        copy = self.path.with_name("copy")
        with self.store.writer.quiet():
            shutil.copytree(self.path, copy)
        self.store.close()
        shutil.rmtree(self.path)
        copy.rename(self.path)
        self.store = self.open()
        assert self.store.recovery.is_sound

    @rule()
    def rebuild(self) -> None:
        self.store.close()
        report = fsck(self.path, deep=True)
        assert report.clean, report.problems
        rebuild_index(self.path)
        self.store = self.open()

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        named: set[int] = {pick for _, _, pick in self.staged}
        for number, picks in enumerate(SEGMENTS):
            encoding = segment_of([CONTENTS[pick] for pick in picks], name=str(number))
            live = [index for (segment, index), at in sorted(self.held.items()) if segment == number and at is None]
            assert self.store.holding([encoding.segment_id]) == [live]
            assert self.store.segment(encoding.segment_id) == ([(raw_of(encoding), live)] if live else [])
            named |= {pick for (segment, _) in self.held if segment == number for pick in picks}
            manifests = sorted(self.manifests.get(number, {}).items(), key=lambda item: (-item[1], item[0]))
            expected = [manifest_of(number, publisher, created).raw for publisher, created in manifests]
            assert self.store.manifests(manifest_of(number).cid) == expected
        for upload, owner in {key[:2] for key in self.staged}:
            assert set(self.store.staged(upload, owner)) == self.staged_roots(upload, owner)
        roots = {_root(pick) for pick in named}
        for pick, data in enumerate(CONTENTS):
            found = self.store.find(_root(pick))
            assert (found is not None) == (_root(pick) in roots)
            if pick in named:
                assert self.store.read(_root(pick), 0, len(data)) == data
        used = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        assert self.store.stats().used_bytes == used

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.directory.__exit__(None, None, None)


def _root(pick: int) -> FragmentRoot:
    return build_image(CONTENTS[pick]).root


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
