"""Deposits and vouchers: what is redeemed once is never paid twice, and never more than there is."""

from __future__ import annotations

import pytest

from dds.ledger.params import Params
from dds.ledger.records import DEPOSITS, DepositEntry
from dds.ledger.rules.retrieval import retrieval_cost
from dds.primitives.keys import SigningKey
from dds.primitives.money import AMOUNT_MAX, TOKEN
from dds.primitives.units import KIB
from dds.wire.codec import encode
from dds.wire.ledger import Deposit, RedeemVouchers, RequestWithdrawal, Withdraw
from dds.wire.signed import sign
from dds.wire.vouchers import ANY_NODE, VOUCHER_TAG, Grant, Voucher, grant_name, sign_grant, sign_voucher
from tests.money_ledger import ANNA, BERT, CARL, NETWORK, MoneyLedger, genesis_node, key_of

NODE, OTHER = key_of("node"), key_of("other")
READER = key_of("reader")  # has no account: it signs under a grant


@pytest.fixture
def ledger() -> MoneyLedger:
    """Bert runs `node`, Carl runs `other`."""
    return MoneyLedger(genesis_node("node", BERT), genesis_node("other", CARL))


def voucher(cumulative: int, node: SigningKey = NODE, *, payer: SigningKey = ANNA, epoch: int = 0) -> bytes:
    return sign_voucher(payer, Voucher(1, NETWORK, payer.public, node.public, cumulative, epoch))


def redeem(*vouchers: bytes, grants: tuple[bytes, ...] = ()) -> RedeemVouchers:
    return RedeemVouchers(sorted(vouchers), sorted(grants))


def deposit_of(ledger: MoneyLedger) -> DepositEntry:
    return ledger.state.find(DEPOSITS, ANNA.public) or DepositEntry()


def test_a_voucher_pays_the_nodes_payout_account_out_of_the_deposit(ledger: MoneyLedger) -> None:
    assert ledger.do(ANNA, Deposit(100)).ok
    assert ledger.do(CARL, redeem(voucher(30))).ok  # anybody may bring it
    assert ledger.balance(ANNA) == 1_000 * TOKEN - 100 and ledger.balance(BERT) == 1_000 * TOKEN + 30
    assert deposit_of(ledger).amount == 70


def test_cumulative_vouchers_pay_only_what_is_new(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    ledger.do(BERT, redeem(voucher(30)))
    ledger.do(BERT, redeem(voucher(45)))
    assert ledger.balance(BERT) == 1_000 * TOKEN + 45


def test_a_replayed_or_older_voucher_pays_nothing_and_is_refused(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    ledger.do(BERT, redeem(voucher(30)))
    assert [ledger.do(BERT, redeem(voucher(old))).code for old in (30, 29)] == ["nothing-to-pay"] * 2
    assert ledger.balance(BERT) == 1_000 * TOKEN + 30


def test_an_older_voucher_in_a_batch_that_pays_is_passed_over(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    ledger.do(BERT, redeem(voucher(30)))
    assert ledger.do(BERT, redeem(voucher(20), voucher(31), voucher(5, OTHER))).ok
    assert (ledger.balance(BERT), ledger.balance(CARL)) == (1_000 * TOKEN + 31, 1_000 * TOKEN + 5)


def test_two_vouchers_of_one_payer_in_a_batch_pay_the_larger_one_once(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    assert ledger.do(BERT, redeem(voucher(20), voucher(30))).ok
    assert ledger.balance(BERT) == 1_000 * TOKEN + 30


def test_a_deposit_promised_to_two_nodes_pays_the_first_and_the_rest_to_the_second(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(15))
    ledger.do(BERT, redeem(voucher(10)))
    ledger.do(CARL, redeem(voucher(10, OTHER)))
    assert (ledger.balance(BERT), ledger.balance(CARL)) == (1_000 * TOKEN + 10, 1_000 * TOKEN + 5)
    assert ledger.state.find(DEPOSITS, ANNA.public) is None


def test_what_a_short_deposit_left_unpaid_is_paid_when_there_is_money_again(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(15))
    ledger.do(CARL, redeem(voucher(20, OTHER)))
    assert ledger.do(CARL, redeem(voucher(20, OTHER))).code == "nothing-to-pay"
    ledger.do(ANNA, Deposit(15))
    ledger.do(CARL, redeem(voucher(20, OTHER)))
    assert ledger.balance(CARL) == 1_000 * TOKEN + 20 and deposit_of(ledger).amount == 10


@pytest.mark.parametrize("amount", [AMOUNT_MAX, 1_000 * TOKEN + 1])
def test_the_largest_amounts_move_no_more_than_there_is(ledger: MoneyLedger, amount: int) -> None:
    assert ledger.do(ANNA, Deposit(amount)).code == "insufficient-balance"
    ledger.do(ANNA, Deposit(7))
    assert ledger.do(ANNA, RequestWithdrawal(amount)).code == "insufficient-deposit"
    assert ledger.do(BERT, redeem(voucher(amount))).ok
    assert ledger.balance(BERT) == 1_000 * TOKEN + 7


# -- taking a deposit out ---------------------------------------------------------------------------------------------------


def test_what_is_leaving_is_redeemable_until_it_is_out(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    ledger.do(ANNA, RequestWithdrawal(90))
    ledger.go_to(24)
    assert ledger.do(BERT, redeem(voucher(40))).ok
    assert deposit_of(ledger) == DepositEntry(0, 60, 24)
    assert ledger.do(ANNA, Withdraw()).ok
    assert ledger.do(BERT, redeem(voucher(50))).code == "nothing-to-pay"
    assert ledger.balance(ANNA) == 1_000 * TOKEN - 40 and ledger.balance(BERT) == 1_000 * TOKEN + 40


def test_a_withdrawal_waits_to_the_very_epoch(ledger: MoneyLedger) -> None:
    ledger.go_to(5)
    ledger.do(ANNA, Deposit(100))
    ledger.do(ANNA, RequestWithdrawal(60))
    ledger.go_to(28)
    assert ledger.do(ANNA, Withdraw()).code == "too-early"
    ledger.go_to(29)
    assert ledger.do(ANNA, Withdraw()).ok
    assert ledger.balance(ANNA) == 1_000 * TOKEN - 40 and deposit_of(ledger) == DepositEntry(40)


def test_asking_for_more_starts_the_clock_anew_for_all_of_it(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    ledger.do(ANNA, RequestWithdrawal(60))
    ledger.go_to(23)
    ledger.do(ANNA, RequestWithdrawal(1))
    ledger.go_to(24)
    assert ledger.do(ANNA, Withdraw()).code == "too-early"
    assert deposit_of(ledger) == DepositEntry(39, 61, 47)


def test_nothing_is_not_moved(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    assert ledger.do(ANNA, Deposit(0)).code == "nothing-to-move"
    assert ledger.do(ANNA, RequestWithdrawal(0)).code == "nothing-to-move"
    assert ledger.do(ANNA, Withdraw()).code == "nothing-to-withdraw"


# -- who may sign what ------------------------------------------------------------------------------------------------------


def test_nobody_signs_vouchers_on_anothers_deposit(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    forged = sign(BERT, VOUCHER_TAG, NETWORK, encode(Voucher(1, NETWORK, ANNA.public, NODE.public, 30, 0)))
    assert ledger.do(BERT, redeem(forged)).code == "bad-voucher"
    assert deposit_of(ledger).amount == 100


def test_one_bad_voucher_takes_back_what_the_batch_had_paid(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    stranger = sign_voucher(ANNA, Voucher(1, NETWORK, ANNA.public, key_of("nobody").public, 30, 0))
    assert ledger.do(BERT, redeem(voucher(30), stranger)).code == "no-such-node"
    assert ledger.balance(BERT) == 1_000 * TOKEN and deposit_of(ledger).amount == 100


def test_a_voucher_is_worth_nothing_before_its_epoch(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    assert ledger.do(BERT, redeem(voucher(30, epoch=1))).code == "too-early"
    ledger.go_to(1)
    assert ledger.do(BERT, redeem(voucher(30, epoch=1))).ok


def test_a_batch_is_strictly_ascending(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(100))
    one, two = sorted((voucher(10), voucher(20)))
    assert ledger.do(BERT, RedeemVouchers([two, one], [])).code == "not-ascending"
    assert ledger.do(BERT, RedeemVouchers([one, one], [])).code == "not-ascending"


# -- grants -----------------------------------------------------------------------------------------------------------------


def grant(amount: int, *, node_id: bytes = ANY_NODE, expires: int = 100) -> Grant:
    return Grant(1, NETWORK, ANNA.public, READER.public, amount, node_id, expires, bytes(32))


def granted(under: Grant, cumulative: int, node: SigningKey = NODE, signer: SigningKey = READER, epoch: int = 0) -> bytes:
    fields = Voucher(1, NETWORK, under.sponsor, node.public, cumulative, epoch, grant_name(under))
    return sign_voucher(signer, fields)


def test_a_grants_total_over_all_nodes_never_exceeds_its_cap(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    under = grant(100)
    raw = sign_grant(ANNA, under)
    assert ledger.do(BERT, redeem(granted(under, 70), grants=(raw,))).ok
    assert ledger.do(CARL, redeem(granted(under, 70, OTHER), grants=(raw,))).ok
    assert (ledger.balance(BERT), ledger.balance(CARL)) == (1_000 * TOKEN + 70, 1_000 * TOKEN + 30)
    more = redeem(granted(under, 500), granted(under, 500, OTHER), grants=(raw,))
    assert ledger.do(BERT, more).code == "nothing-to-pay"
    assert deposit_of(ledger).amount == 900


def test_a_grant_and_its_sponsors_own_vouchers_are_counted_apart(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    under = grant(100)
    both = redeem(granted(under, 50), voucher(50), grants=(sign_grant(ANNA, under),))
    assert ledger.do(BERT, both).ok
    assert ledger.balance(BERT) == 1_000 * TOKEN + 100


def test_a_grant_for_one_node_pays_no_other(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    under = grant(100, node_id=NODE.public)
    raw = sign_grant(ANNA, under)
    assert ledger.do(CARL, redeem(granted(under, 50, OTHER), grants=(raw,))).code == "bad-voucher"
    assert ledger.do(BERT, redeem(granted(under, 50), grants=(raw,))).ok


def test_a_grant_ends_with_its_last_epoch(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    under = grant(100, expires=3)
    raw = sign_grant(ANNA, under)
    ledger.go_to(3)
    assert ledger.do(BERT, redeem(granted(under, 50), grants=(raw,))).ok
    ledger.go_to(4)
    assert ledger.do(BERT, redeem(granted(under, 60), grants=(raw,))).code == "grant-expired"


def test_a_larger_grant_cannot_be_put_in_place_of_the_one_that_was_signed_under(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    small, large = grant(10), grant(500)
    assert ledger.do(BERT, redeem(granted(small, 400), grants=(sign_grant(ANNA, large),))).code == "bad-voucher"


def test_only_the_grantee_signs_under_a_grant(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    under = grant(100)
    assert ledger.do(BERT, redeem(granted(under, 50, signer=BERT), grants=(sign_grant(ANNA, under),))).code == "bad-voucher"


def test_nobody_grants_from_anothers_deposit(ledger: MoneyLedger) -> None:
    ledger.do(ANNA, Deposit(1_000))
    forged = sign(BERT, b"dds/grant/v1", NETWORK, encode(grant(100)))
    assert ledger.do(BERT, redeem(granted(grant(100), 50), grants=(forged,))).code == "bad-voucher"


def test_reading_is_charged_per_started_unit() -> None:
    assert [retrieval_cost(Params(), size) for size in (0, 1, KIB, KIB + 1)] == [0, 2, 1_862, 1_864]
