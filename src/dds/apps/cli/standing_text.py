"""How a node's standing on the ledger reads: how far a newcomer has come, how often a node was there, what it still lacks.

Decides words, not rules: those are dds.ledger's (rules/standing.py, rules/weights.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dds.apps.cli.checks import Check
from dds.apps.cli.ledger_text import ppm_text, price_text, span_text
from dds.primitives.money import format_tokens, mul_div_ceil
from dds.primitives.units import GIB, human_bytes

if TYPE_CHECKING:
    from dds.ledger.params import Params
    from dds.ledger.records import Node, Operator, Standing

TIB = GIB << 10


def vetting_text(node: Node, standing: Standing | None, params: Params, epoch: int) -> str:
    """`vetted`, or what of it is done: `3 of 10 audits, 7 of 10 epochs`."""
    from dds.ledger.records import Standing
    from dds.ledger.rules.standing import is_vetted

    found = standing or Standing()
    if is_vetted(node, found, params, epoch):
        return "vetted"
    passed = min(found.passed, params.vetted_audits)
    there = min(epoch - node.registered_epoch, params.vetted_epochs)
    return f"{passed} of {params.vetted_audits} audits, {there} of {params.vetted_epochs} epochs"


def uptime_ppm(standing: Standing | None, params: Params, epoch: int) -> tuple[int, int]:
    """The share of judged windows in which the node passed something, and how many windows were judged; 10^6 of none."""
    from dds.ledger.records import Standing
    from dds.ledger.rules.standing import windows_seen

    passed, judged = windows_seen(standing or Standing(), params, epoch)
    return (passed * 1_000_000 // judged if judged else 1_000_000), judged


def standing_checks(
    node: Node, standing: Standing | None, operator: Operator | None, offered_bytes: int, params: Params, epoch: int, price: int
) -> list[Check]:
    """What the ledger holds against a node, and for it. `offered_bytes`: by all storage nodes of its operator together."""
    return [
        _status(node),
        _vetting(node, standing, params, epoch),
        _score(standing, params),
        _uptime(standing, params, epoch),
        _bond(operator, offered_bytes, params, epoch),
        _pool(node),
        _ask(node, params, price),
    ]


def _status(node: Node) -> Check:
    from dds.ledger.records import NodeStatus

    text = f"node {node.number}, {'+'.join(node.roles)}, {node.assignments:,} assignments"
    match NodeStatus(node.status):
        case NodeStatus.ACTIVE:
            return Check("ledger", "ok", text)
        case NodeStatus.RETIRING:
            return Check("ledger", "warn", f"{text}; it is leaving and takes nothing new", "register a new node to stay")
        case NodeStatus.FAULTED:
            todo = "when it holds nothing any more: dds stake ask NODE --capacity SIZE brings it back"
            return Check("ledger", "fail", f"{text}; caught: {node.fault_reason}", todo)


def _vetting(node: Node, standing: Standing | None, params: Params, epoch: int) -> Check:
    text = vetting_text(node, standing, params, epoch)
    if text == "vetted":
        return Check("vetting", "ok", text)
    share = ppm_text(params.unvetted_share_ppm)
    return Check("vetting", "warn", f"{text}; until then all newcomers together are drawn for {share}", "keep it running")


def _score(standing: Standing | None, params: Params) -> Check:
    from dds.ledger.records import Standing
    from dds.ledger.rules.standing import score_ppm

    found = standing or Standing()
    text = f"{ppm_text(score_ppm(found, params))} after {found.judged:,} audits, {found.passed:,} of them passed"
    if found.missed_in_row:
        todo = "is it reachable, and is its disk fast enough? see node.log"
        return Check("score", "warn", f"{text}; {found.missed_in_row} missed in a row", todo)
    return Check("score", "ok", text)


def _uptime(standing: Standing | None, params: Params, epoch: int) -> Check:
    share, judged = uptime_ppm(standing, params, epoch)
    least, window = ppm_text(params.downtime_suspend_ppm), span_text(params.downtime_window_epochs, params)
    text = f"something passed in {ppm_text(share)} of {judged} windows of {window}; at least {least}"
    if share < params.downtime_suspend_ppm:
        return Check("uptime", "fail", f"suspended: {text}", "keep it running: windows are forgotten with age")
    return Check("uptime", "ok", text)


def _bond(operator: Operator | None, offered_bytes: int, params: Params, epoch: int) -> Check:
    if operator is None or operator.bond == 0:
        return Check("bond", "fail", "its operator has no bond: it is never drawn", "dds stake bond AMOUNT --region NAME")
    if operator.jailed_until > epoch:
        left = span_text(operator.jailed_until - epoch, params)
        return Check("bond", "fail", f"its operator is jailed for {left} more", "wait; see why: dds explain ACCOUNT")
    need = max(params.bond_min, mul_div_ceil(offered_bytes, params.bond_need_per_tib, TIB))
    text = f"{format_tokens(operator.bond)} of {format_tokens(need)} for {human_bytes(offered_bytes)}"
    if operator.bond < need:
        return Check("bond", "warn", f"{text}: its weight shrinks in proportion", "dds stake bond AMOUNT, or offer less")
    return Check("bond", "ok", text)


def _pool(node: Node) -> Check:
    text = f"{format_tokens(node.pool_free)} free, {format_tokens(node.pool_locked)} held by assignments"
    if node.pool_free == 0:
        return Check("pool", "fail", f"{text}: nothing new can lock collateral", "dds stake fund NODE AMOUNT")
    return Check("pool", "ok", text)


def _ask(node: Node, params: Params, price: int) -> Check:
    text = f"{price_text(node.ask_price, params)}; the price now is {price:,}"
    if node.ask_price > price:
        return Check("ask", "warn", text, "who pays the price now does not draw it: dds stake ask NODE --price PRICE")
    return Check("ask", "ok", text)
