"""`dds policy`: the rules by which `dds put --class auto` chooses a class, and what they say of a source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli.cid import STDIN, HiddenOption, check_paths
from dds.apps.cli.session import Session, command, group, plain, printable, with_client
from dds.primitives.errors import InputError
from dds.primitives.money import format_tokens
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dds.placement.policy import Decision, Facts, PassedOver, Policy, Rule
    from dds.runtime.class_choice import Explanation
    from dds.runtime.client import Client
    from dds.runtime.results import PutOptions


def app() -> typer.Typer:
    """The `policy` group."""
    made = group("policy", "Which class a put gets when none is named: the rules, and what they say of a source.")
    for run in (show, init, check, explain):
        command(made)(run)
    return made


def show(session: Session) -> None:
    """Show the rules in force, and which file they are from."""
    from dds.storage.policy_file import load_policy

    policy = load_policy(session.open_home(create=True))
    session.result(_policy_data(policy), "\n".join(_policy_lines(policy)))


def init(
    session: Session, force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False
) -> None:
    """Write the default rules to the home's policy.toml, to be edited."""
    from dds.storage.policy_file import write_default_policy

    path = write_default_policy(session.open_home(create=True), overwrite=force)
    session.result({"path": str(path)}, str(path))


def check(session: Session, file: Annotated[Path, typer.Argument(metavar="FILE", help="A rule file.")]) -> None:
    """Check a rule file; an error names rule and key."""
    from dds.storage.policy_file import read_policy

    policy = read_policy(file)
    session.result(_policy_data(policy), f"{policy.where}: {len(policy.rules)} rules, all understood")


def explain(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or directory.")],
    hidden: HiddenOption = False,
    reads_per_day: Annotated[float | None, typer.Option(min=0, help="Suppose that it is read so often.")] = None,
    idle_days: Annotated[float | None, typer.Option(min=0, help="Suppose that nobody has read it for so long.")] = None,
    age_days: Annotated[float | None, typer.Option(min=0, help="Suppose that it was first put so long ago.")] = None,
) -> None:
    """Show which rule PATH meets, and why those before it do not match. Needs no network."""
    from dataclasses import replace

    from dds.placement.policy import decide
    from dds.storage.policy_file import load_policy
    from dds.storage.source import SourceOptions
    from dds.storage.source_facts import facts_of

    check_paths([str(path)])
    policy = load_policy(session.open_home(create=True))
    facts = facts_of(path, SourceOptions(hidden=hidden))
    facts = replace(facts, reads_per_day=reads_per_day, idle_days=idle_days, age_days=age_days)
    decision = decide(facts, policy.rules)
    data = {"path": str(path), "rules": policy.where, "facts": plain(facts), "decision": plain(decision)}
    session.result(data, "\n".join([*_fact_lines(facts), *_decision_lines(decision, policy)]))


def explain_puts(session: Session, paths: list[str], options: PutOptions) -> None:
    """`dds put --explain`: nothing is stored."""
    if STDIN in paths:
        raise InputError("standard input cannot be explained: its size is not known", hint="write it to a file first")

    async def work(client: Client) -> None:
        for path in paths:
            found = await client.explain(Path(path), options)
            session.result({"path": path, **_data(found)}, "\n".join(describe(found)))

    with_client(session, work)


def describe(found: Explanation) -> list[str]:
    """An explanation for people, a line a fact."""
    chances = [
        f"             {row.node_loss:.0%} of nodes: a segment {row.segment:.1e}, anything of it {row.content:.1e}"
        for row in found.loss_chances
    ]
    if found.rules:
        by = f"rule {found.rule}{_label(found.label)} of {found.rules}: {found.why}" if found.rule else found.why
    else:
        by = found.why
    lines = [
        *_fact_lines(found.facts),
        *_passed_lines(found.passed_over),
        f"class        {found.class_name}, because {by}",
        f"geometry     {found.segments} segments on {found.nodes_per_segment} nodes each; class {found.k}+{found.m}",
        f"may lose     any {found.losses_survived} nodes of each segment",
        f"loss of data if {found.assumption}:",
        *chances,
        f"on nodes     at most {human_bytes(found.stored_bytes)} for {human_bytes(found.block_bytes)} of blocks; deduplication "
        "and compression make it less",
    ]
    if found.term:
        lines.append(f"term         {found.term}")
    if found.archive_after_days is not None:
        lines.append(f"later        archive, when nobody has read it for {found.archive_after_days} days")
    return lines + _cost_lines(found)


def _cost_lines(found: Explanation) -> list[str]:
    if found.offer is not None:
        quote = found.offer.quote
        parts = f"rent {format_tokens(quote.rent)}, fee {format_tokens(quote.fee)}, reserve {format_tokens(quote.reserve)}"
        return [f"cost         at most {format_tokens(quote.total)} for {quote.term_epochs:,} epochs: {parts}"]
    return [f"cost         {found.no_offer or 'nothing: this network is not paid'}"]


def _data(found: Explanation) -> dict[str, object]:
    made = plain(found)
    assert isinstance(made, dict)
    return made


def _fact_lines(facts: Facts) -> list[str]:
    size = "not known" if facts.size_bytes is None else f"{human_bytes(facts.size_bytes)} ({facts.size_bytes} bytes)"
    reads = (
        "not known: it is measured where it has been stored"
        if facts.reads_per_day is None
        else f"{facts.reads_per_day:g} reads a day"
    )
    lines = [
        f"name         {printable(facts.name)}, a {facts.kind}",
        f"type         {facts.content_type}",
        f"size         {size}",
        f"popularity   {reads}",
    ]
    if facts.age_days is not None:
        lines.append(f"age          {facts.age_days:g} days")
    if facts.idle_days is not None:
        lines.append(f"not read for {facts.idle_days:g} days")
    return lines


def _decision_lines(decision: Decision, policy: Policy) -> list[str]:
    by = f"rule {decision.rule}{_label(decision.label)} of {policy.where}: " if decision.rule else ""
    lines = [*_passed_lines(decision.passed_over), f"class        {decision.class_name}, because {by}{decision.why}"]
    if decision.term:
        lines.append(f"term         {decision.term}")
    if decision.archive_after_days is not None:
        lines.append(f"later        archive, when nobody has read it for {decision.archive_after_days} days")
    return lines


def _passed_lines(passed: Sequence[PassedOver]) -> list[str]:
    return [f"not rule {rule.number:<4}{rule.label or 'no label'}: {rule.why}" for rule in passed]


def _label(label: str) -> str:
    return f" ({label})" if label else ""


def _policy_lines(policy: Policy) -> list[str]:
    lines = [f"rules of {policy.where}; the first that matches decides"]
    for rule in policy.rules:
        lines.append(f"{rule.number:>3}  {_outcome(rule)}{_label(rule.label)}")
        lines += [f"     if {condition.wants}" for condition in rule.conditions]
    return lines


def _outcome(rule: Rule) -> str:
    text = f"{rule.class_name} {rule.geometry}"
    text += f", for {rule.term}" if rule.term else ""
    return text + (f", archive after {rule.archive_after_days} days unread" if rule.archive_after_days is not None else "")


def _policy_data(policy: Policy) -> dict[str, object]:
    rules = [
        {
            "rule": rule.number,
            "label": rule.label,
            "conditions": {condition.key: condition.wants for condition in rule.conditions},
            "class": rule.class_name,
            "k": rule.geometry.k,
            "m": rule.geometry.m,
            "term": rule.term,
            "archive_after_days": rule.archive_after_days,
        }
        for rule in policy.rules
    ]
    return {"where": policy.where, "rules": rules}
