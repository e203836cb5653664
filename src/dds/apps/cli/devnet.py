"""`dds devnet`: a local network of real node processes on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dds.apps.cli.session import Session, command, fields, group, parse_size
from dds.primitives.errors import InputError

if TYPE_CHECKING:
    from dds.runtime.devnet import Devnet, Label, NodeStatus
    from dds.runtime.devnet_engines import LedgerStatus


def _node_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Shell completion: the nodes of the home that the command line names so far."""
    outer: Session = ctx.find_root().obj or Session()
    try:
        members = _devnet(Session(ctx.params.get("home") or outer.home)).members()
    except Exception:
        return []  # completion never complains
    return [member.name for member in members if member.name.startswith(incomplete)]


NodesArgument = Annotated[
    list[str], typer.Argument(metavar="NODE", help="Names, for example node-03, or NodeIDs.", autocompletion=_node_names)
]


def app() -> typer.Typer:
    """The `devnet` group."""
    made = group("devnet", "A local network of real node processes, to try and to test with.")
    for run in (up, down, status, kill, start, pause, resume, outage):
        command(made)(run)
    return made


def _devnet(session: Session, *, create: bool = False) -> Devnet:
    from dds.runtime.devnet import Devnet

    return Devnet(session.open_home(create=create))


def up(
    session: Session,
    nodes: Annotated[int | None, typer.Option(help="How many nodes [default: 20]")] = None,
    regions: Annotated[int | None, typer.Option(help="Over how many regions [default: 5]")] = None,
    operators: Annotated[int | None, typer.Option(help="Of how many operators [default: 10]")] = None,
    ledger: Annotated[
        Literal["embedded", "nats", "abci", "none"] | None,
        typer.Option(
            help="Who keeps the books: one process, two on three NATS servers, four on four CometBFT validators, or nobody "
            "[default: embedded]"
        ),
    ] = None,
    epoch: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long an epoch of the ledger lasts [default: 5]")
    ] = None,
    capacity: Annotated[str, typer.Option(metavar="SIZE", help="Disk space a node may use.")] = "20GiB",
    asn: Annotated[int | None, typer.Option(help="How many archive nodes beside them [default: 0]")] = None,
    ecn: Annotated[int | None, typer.Option(help="How many edge caches beside them [default: 0]")] = None,
    latency: Annotated[
        int | None, typer.Option(metavar="MS", help="Simulated round trip between two regions [default: 0]")
    ] = None,
    roles: Annotated[
        list[str] | None,
        typer.Option("--role", "--roles", metavar="NAME=ROLE[,ROLE]", help="What one node does: node-03=ssn,ecn. Repeatable."),
    ] = None,
) -> None:
    """Start a network; the nodes outlive this command until 'dds devnet down'."""
    from dds.runtime.devnet_shape import Shape, parse_roles

    shape = None
    if any(given is not None for given in (nodes, regions, operators, ledger, epoch, asn, ecn, latency, roles)):
        count = 20 if nodes is None else nodes
        shape = Shape(
            count,
            min(5, count) if regions is None else regions,
            min(10, count) if operators is None else operators,
            ledger or "embedded",
            5_000 if epoch is None else int(epoch * 1000),
            asn or 0,
            ecn or 0,
            latency or 0,
            parse_roles(roles or []),
        )
    devnet = _devnet(session, create=True)
    with _counting(session) as on_ready:
        rows = devnet.up(shape, capacity_bytes=parse_size(capacity), on_ready=on_ready)
    _print(session, devnet, rows, f"{len(rows)} nodes are up in {devnet.home.root}")
    if session.home is not None:
        session.say(f"hint: export DDS_HOME={devnet.home.root}")


def down(
    session: Session,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove what the nodes stored, and the network itself.")] = False,
) -> None:
    """Stop every node of the network and its ledger, and check that nothing is left; safe to repeat."""
    from dds.storage.home import home_path

    stopped = _devnet(session).down(purge=purge) if home_path(session.home).exists() else 0
    session.result({"stopped": stopped}, f"{stopped} nodes stopped, none left")


def status(session: Session) -> None:
    """Show the nodes (name, state, pid, address, region, operator, roles) and what keeps the ledger."""
    devnet = _devnet(session)
    _print(session, devnet, devnet.status())


def kill(session: Session, nodes: NodesArgument) -> None:
    """Kill nodes at once (SIGKILL), as a power cut does."""
    devnet = _devnet(session)
    _print(session, devnet, devnet.kill(nodes))


def start(
    session: Session,
    nodes: NodesArgument,
    tamper: Annotated[
        bool, typer.Option("--tamper", help="Start them as liars that serve altered bytes (a test aid).")
    ] = False,
) -> None:
    """Start nodes that were stopped or killed, with the addresses, keys and data they had."""
    from dds.runtime.devnet import DAEMON, HOSTILE_DAEMON

    devnet = _devnet(session)
    if tamper and any(row.pid is not None for row in devnet.status() if {row.name, row.id} & set(nodes)):
        raise InputError("a node that runs cannot be turned into a liar", hint="kill it first: dds devnet kill NODE")
    with _counting(session) as on_ready:
        _print(session, devnet, devnet.start(nodes, module=HOSTILE_DAEMON if tamper else DAEMON, on_ready=on_ready))


def pause(session: Session, nodes: NodesArgument) -> None:
    """Freeze nodes (SIGSTOP): connected, and silent."""
    devnet = _devnet(session)
    _print(session, devnet, devnet.pause(nodes))


def resume(session: Session, nodes: NodesArgument) -> None:
    """Let paused nodes go on (SIGCONT)."""
    devnet = _devnet(session)
    _print(session, devnet, devnet.resume(nodes))


def outage(
    session: Session,
    region: Annotated[str | None, typer.Option(help="All nodes of this region.")] = None,
    operator: Annotated[str | None, typer.Option(help="All nodes of this operator.")] = None,
    subnet: Annotated[str | None, typer.Option(help="All nodes of this subnet.")] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Freeze them (SIGSTOP) instead of killing them.")] = False,
    restore: Annotated[bool, typer.Option("--restore", "--over", help="The outage is over: start or continue them.")] = False,
) -> None:
    """Take all nodes with one label down at once, or bring them back; without a label, all that are out.

    Without any option it shows what is out.
    """
    devnet = _devnet(session)
    label, value = _one_label({"region": region, "operator": operator, "subnet": subnet})
    if restore and pause:
        raise InputError("an outage is made or is over, not both", hint="leave out --pause or --restore")
    if pause and label is None:
        raise InputError("what is to be frozen?", hint="name it: --region, --operator or --subnet")
    if restore:
        with _counting(session) as on_ready:
            rows = devnet.restore(None if label is None else devnet.with_label(label, value), on_ready=on_ready)
        _tell_outage(session, rows, f"{len(rows)} nodes are back")
    elif label is not None:
        rows = devnet.outage(label, value, pause=pause)
        _tell_outage(session, rows, f"{label} {value}: {len(rows)} nodes {'frozen' if pause else 'killed'}")
    else:
        rows = devnet.out()
        _tell_outage(session, rows, f"{len(rows)} nodes are out")


def _one_label(given: dict[Label, str | None]) -> tuple[Label | None, str]:
    named: list[tuple[Label, str]] = [(label, value) for label, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError("an outage has one label", hint="give one of --region, --operator, --subnet")
    return named[0] if named else (None, "")


def _tell_outage(session: Session, rows: list[NodeStatus], head: str) -> None:
    lines = [
        head,
        *(f"  {row.name:<7}  {row.state:<8} {row.region:<10} {row.operator:<12} {'+'.join(row.roles)}" for row in rows),
    ]
    session.result({"nodes": [fields(row) for row in rows]}, "\n".join(lines))


def _print(session: Session, devnet: Devnet, rows: list[NodeStatus], head: str = "") -> None:
    from dds.runtime.devnet import status_document

    ledger = devnet.ledger_status()
    lines = [head] if head else []
    if not head:
        lines += [
            f"{row.name:<7}  {row.state:<8} {row.pid or '-':>8}  {row.address:<21}  {row.region:<10} {row.operator:<12} "
            f"{'+'.join(row.roles):<11} {row.id}"
            for row in rows
        ]
        lines += [_ledger_line(ledger)] if ledger else []
    session.result(status_document(rows, ledger), "\n".join(lines))


def _ledger_line(ledger: LedgerStatus) -> str:
    return f"ledger   {ledger.engine}  " + ", ".join(
        f"{part.name} {part.state} {part.pid or '-'} {part.address}" for part in ledger.processes
    )


class _counting:
    """Says how many nodes are ready, on one line of a terminal."""

    def __init__(self, session: Session) -> None:
        import sys

        self._live = sys.stderr.isatty() and not session.json
        self._stream = sys.stderr
        self._ready = 0

    def __enter__(self) -> Callable[[str], None]:
        return self._on_ready

    def __exit__(self, *_: object) -> None:
        if self._live and self._ready:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def _on_ready(self, _name: str) -> None:
        self._ready += 1
        if self._live:
            print(f"\r{self._ready} ready", end="", file=self._stream, flush=True)
