"""One copy of the ledger: what a commit makes durable, what is forgotten, what does not depend on blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.engines.replica import Replica
from dds.ledger.machine import Context, apply_block
from dds.ledger.records import ACCOUNTS, CHAIN, Account
from dds.ledger.state import State
from dds.ledger.tree import verify_proof
from dds.primitives.errors import ConfigError
from dds.primitives.hashing import sha256
from tests.ledger_kit import ANNA, BERT, EPOCH_MS, FUNDS, START_MS, small_genesis, transfer


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    opened = Replica.open(tmp_path / "ledger.sqlite", small_genesis())
    yield opened
    opened.close()


def balances(replica: Replica) -> tuple[int, int]:
    anna, bert = replica.find(ACCOUNTS, ANNA.public), replica.find(ACCOUNTS, BERT.public)
    assert anna is not None and bert is not None
    return anna.balance, bert.balance


def put(replica: Replica, time_ms: int, *txs: bytes) -> list[str]:
    result = replica.apply(replica.height + 1, time_ms, txs)
    replica.commit()
    return [each.code for each in result.results]


def test_an_empty_ledger_begins_with_the_genesis_and_refuses_another(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = Replica.open(path, small_genesis())
    root = first.root
    assert (first.height, first.time_ms, balances(first)) == (0, START_MS, (FUNDS, FUNDS))
    first.close()
    with pytest.raises(ConfigError, match="another network"):
        Replica.open(path, small_genesis(epoch_ms=2 * EPOCH_MS))
    again = Replica.open(path, small_genesis())
    assert (again.height, again.root, again.recompute_root()) == (0, root, root)
    again.close()


def test_a_ledger_is_open_once(replica: Replica, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in use"):
        Replica.open(tmp_path / "ledger.sqlite", small_genesis())


def test_what_is_committed_is_there_after_opening_again(replica: Replica, tmp_path: Path) -> None:
    assert put(replica, START_MS + 10, transfer(0, 5), transfer(1, FUNDS)) == ["", "insufficient-balance"]
    head, sums = replica.head(), balances(replica)
    replica.close()
    again = Replica.open(tmp_path / "ledger.sqlite", small_genesis())
    assert (again.head(), balances(again), again.recompute_root()) == (head, sums, head.root)
    assert put(again, START_MS + 20, transfer(1, 1)) == ["bad-nonce"], "a refused transaction used its nonce up"
    again.close()


def test_an_applied_block_is_invisible_until_its_commit_and_gone_when_it_is_abandoned(replica: Replica) -> None:
    root = replica.root
    replica.apply(1, START_MS, [transfer(0, 5)])
    assert (replica.height, replica.root, balances(replica)) == (0, root, (FUNDS, FUNDS))
    assert replica.root_next != root
    replica.abandon()
    assert put(replica, START_MS, transfer(0, 7)) == [""]
    assert balances(replica) == (FUNDS - 7, FUNDS + 7)
    assert replica.recompute_root() == replica.root


def test_an_abandoned_epoch_change_happens_again(replica: Replica) -> None:
    replica.apply(1, START_MS + 3 * EPOCH_MS, [])
    root = replica.root_next
    replica.abandon()
    replica.apply(1, START_MS + 3 * EPOCH_MS, [])
    assert replica.root_next == root != replica.root
    replica.commit()
    chain = replica.find(CHAIN)
    assert chain is not None and chain.epoch == 3 == replica.head().epoch


def test_a_block_applies_as_the_machine_alone_applies_it(replica: Replica) -> None:
    raws = [transfer(0, 5), b"nonsense", transfer(0, 5), transfer(5, 1, sender=BERT)]
    alone = apply_block(State(replica), "test", raws, Context(1, START_MS + 5 * EPOCH_MS))
    assert replica.apply(1, START_MS + 5 * EPOCH_MS, raws) == alone


def test_the_same_transactions_give_the_same_root_however_they_are_cut_into_blocks(tmp_path: Path) -> None:
    times = [0, 0, 400, EPOCH_MS - 1, EPOCH_MS, EPOCH_MS, 3 * EPOCH_MS + 1, 3 * EPOCH_MS + 1]
    txs = [(START_MS + at, transfer(nonce, nonce + 1)) for nonce, at in enumerate(times)]
    ticks = sorted({*times, *range(0, 4 * EPOCH_MS, EPOCH_MS // 2)})
    cuts: list[list[tuple[int, list[bytes]]]] = [
        [(START_MS + at, [raw for time_ms, raw in txs if time_ms == START_MS + at]) for at in sorted(set(times))],
        [(START_MS + at, [raw for time_ms, raw in txs if time_ms == START_MS + at]) for at in ticks],
        [(at, [raw]) for at, raw in txs],
        [block for at, raw in txs for block in ((at, []), (at, [raw]), (at, []))],
    ]
    roots = []
    for number, blocks in enumerate(cuts):
        one = Replica.open(tmp_path / f"{number}.sqlite", small_genesis())
        for at, raws in blocks:
            assert set(put(one, at, *raws)) <= {""}
        put(one, START_MS + 4 * EPOCH_MS)
        roots.append(one.root)
        assert balances(one)[1] == FUNDS + sum(range(1, 9))
        one.close()
    assert len(set(roots)) == 1


def test_a_block_whose_time_runs_back_counts_as_of_the_last(replica: Replica) -> None:
    put(replica, START_MS + 2 * EPOCH_MS)
    put(replica, START_MS)
    assert (replica.time_ms, replica.epoch) == (START_MS + 2 * EPOCH_MS, 2)


def test_events_are_found_by_what_they_are_about(replica: Replica) -> None:
    first, second = transfer(0, 5), transfer(1, 6)
    put(replica, START_MS, first, second)
    put(replica, START_MS, transfer(0, 1, sender=BERT, to=ANNA.public))
    of_anna = replica.events(account=ANNA.public, limit=10)
    assert [row.height for row in of_anna] == [1, 1, 2]
    assert [row.tx_id for row in replica.events(tx_id=sha256(second), limit=10)] == [sha256(second)] * 2
    assert replica.events(tx_id=sha256(second), account=BERT.public, limit=10)[0].tx_name == "transfer"
    page = replica.events(limit=2)
    assert len(page) == 2 and len(replica.events(after=page[-1].seq, limit=10)) == 4
    assert replica.events(node=3, limit=10) == replica.events(contract=bytes(32), limit=10) == []
    assert replica.events(tx_id=bytes(32), limit=10) == []


def test_a_transaction_is_found_again_with_what_became_of_it(replica: Replica) -> None:
    done, refused, unused = transfer(0, 5), transfer(1, FUNDS), transfer(7)
    put(replica, START_MS, done, refused, unused)
    found = replica.outcome_of(done)
    assert found is not None and (found.height, found.ok, [event.delta for event in found.events]) == (1, True, [-5, 5])
    found = replica.outcome_of(refused)
    assert found is not None and (found.code, found.events) == ("insufficient-balance", ())
    assert replica.outcome_of(unused) is None


def test_a_mempool_follows_pending_nonces_until_the_next_commit(replica: Replica) -> None:
    def refusals(*raws: bytes) -> list[str]:
        return [found.code if (found := replica.admit(raw)) else "" for raw in raws]

    assert refusals(*map(transfer, (0, 1, 1, 3))) == ["", "", "bad-nonce", "bad-nonce"]
    assert refusals(b"nonsense") == ["format"] and balances(replica) == (FUNDS, FUNDS)
    put(replica, START_MS, transfer(0))
    assert refusals(*map(transfer, (0, 1))) == ["bad-nonce", ""]


def test_a_mempool_admits_what_its_rule_will_refuse_because_the_nonce_is_used(replica: Replica) -> None:
    assert [replica.admit(raw) for raw in (transfer(0, 3 * FUNDS), transfer(1, 5))] == [None, None]


def test_only_what_uses_its_nonce_fits_into_a_block_and_asking_changes_nothing(replica: Replica) -> None:
    refused, done = transfer(0, 3 * FUNDS), transfer(1, 5)
    fitting = replica.fitting(START_MS + EPOCH_MS, [refused, b"nonsense", transfer(5), done, done])
    assert fitting == [refused, done]
    assert balances(replica) == (FUNDS, FUNDS) and replica.height == 0
    replica.apply(1, START_MS + EPOCH_MS, fitting)
    replica.commit()
    assert all(replica.outcome_of(raw) for raw in fitting)


def test_entries_and_their_proofs_belong_to_one_head(replica: Replica) -> None:
    put(replica, START_MS, transfer(0, 5))
    keys = [ACCOUNTS.key(ANNA.public), ACCOUNTS.key(bytes(32))]
    proven = replica.prove_many(keys)
    for key, (value, proof) in zip(keys, proven.entries, strict=True):
        assert verify_proof(proof, key, value, proven.head.root)
    assert [value is None for value, _ in proven.entries] == [False, True]
    assert replica.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 5, 1)


def test_blocks_replay_to_the_same_root(replica: Replica, tmp_path: Path) -> None:
    put(replica, START_MS, transfer(0, 5), b"nonsense")
    put(replica, START_MS + EPOCH_MS)
    put(replica, START_MS + EPOCH_MS, transfer(0, 5, sender=BERT))
    other = Replica.open(tmp_path / "other.sqlite", small_genesis())
    for height, block in replica.blocks():
        result = other.apply(height, block.time_ms, block.txs)
        assert (other.root_next, tuple(each.code for each in result.results)) == (block.root, block.codes)
        other.commit()
    assert other.head() == replica.head()
    other.close()
