"""A spool that meets its own end, or another put's spool of the same name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dds.erasure.stripes import EncodedStripe, encode_stripe
from dds.primitives.errors import StorageError
from dds.runtime.spool import Spool
from dds.wire.segment import StripeShape


def stripe_of(byte: int) -> EncodedStripe:
    return encode_stripe(StripeShape(2, 1, 1000, 2000), bytes([byte]) * 2000)


def test_what_is_appended_after_the_end_opens_no_file(tmp_path: Path) -> None:
    spool, before = Spool(tmp_path / "spool"), len(os.listdir("/proc/self/fd"))
    spool.close()
    with pytest.raises(StorageError, match="closed"):
        spool.append(stripe_of(1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_puts_of_the_same_upload_keep_their_spools_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Spool(tmp_path / "spool"), Spool(tmp_path / "spool")
    unlink, waiting = os.unlink, [lambda: two.append(stripe_of(2))]

    def interrupted(path: str) -> None:
        while waiting:
            waiting.pop()()  # the other opens its own before this one's name is gone
        unlink(path)

    monkeypatch.setattr(os, "unlink", interrupted)
    one.append(stripe_of(1))
    assert one.read(0)[1] == b"\x01" * 2000
    assert two.read(0)[1] == b"\x02" * 2000
    one.close()
    two.close()
