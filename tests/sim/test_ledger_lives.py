"""Whole histories of a ledger, one a seed: every kind of transaction, watched step by step (tests/ledger_watch.py)."""

from __future__ import annotations

import pytest

from tests.ledger_moves import play
from tests.ledger_world import root_of


@pytest.mark.seeds(8)
def test_a_history_of_the_ledger_keeps_every_promise_and_can_be_played_again(seed: int) -> None:
    world = play(1_000 + seed, 500)
    assert root_of(world.genesis, world.blocks) == world.root
