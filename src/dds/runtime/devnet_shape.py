"""What a devnet looks like: which nodes it has, what they are called, where they are and what they do.

Decides names, labels and roles from a few numbers; touches nothing. Labels go round robin, for each kind of node anew, so that
with the defaults (20 nodes, 5 regions, 10 operators) no region has more than 4 storage nodes and no operator more than 2: any
16 of them satisfy the placement rules. 12 archive nodes of at least 6 operators in at least 3 regions satisfy those of the
archive class. What is done with the nodes: runtime/devnet.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from dds.primitives.errors import InputError
from dds.storage.home import Role

NODES_MAX: Final = 200
EPOCH_MS_MIN: Final = 1_000
LATENCY_MS_MAX: Final = 10_000
HOME_REGION: Final = "region-0"  # where the devnet's own home is

Ledger = Literal["embedded", "nats", "abci", "none"]
RolesOf = tuple[tuple[str, tuple[Role, ...]], ...]  # a node's name, and what it does instead of what its kind does


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a devnet is, and what is in it."""

    nodes: int = 20  # that store (ssn)
    regions: int = 5
    operators: int = 10
    ledger: Ledger = "embedded"  # or "none": nobody pays, nobody is paid
    epoch_ms: int = 5_000  # of the ledger
    asn: int = 0  # archive nodes beside them
    ecn: int = 0  # edge caches beside them
    latency_ms: int = 0  # of a round trip between two regions, simulated
    roles: RolesOf = ()

    @property
    def total(self) -> int:
        return self.nodes + self.asn + self.ecn

    def described(self) -> str:
        beside = "".join(f", {count} {kind}" for kind, count in (("asn", self.asn), ("ecn", self.ecn)) if count)
        latency = f", {self.latency_ms} ms between regions" if self.latency_ms else ""
        roles = "".join(f", {name}={'+'.join(roles)}" for name, roles in self.roles)
        return (
            f"{self.nodes} nodes{beside}, {self.regions} regions, {self.operators} operators{latency}{roles}, "
            f"ledger {self.ledger} with epochs of {self.epoch_ms / 1000:g} s"
        )


@dataclass(frozen=True, slots=True)
class Place:
    """One node of a shape."""

    name: str
    region: str
    operator: str
    subnet: str
    roles: tuple[Role, ...]


def places(shape: Shape) -> list[Place]:
    """The nodes of a shape: those that store, then archive nodes, then edges. No two share a subnet.

    Raises:
        InputError: numbers or roles that cannot be.
    """
    _check_numbers(shape)
    given = dict(shape.roles)
    made = []
    for index, (name, number, roles) in enumerate(_kinds(shape)):
        chosen = given.pop(name, roles)
        # the committee stays: a ledger whose witnesses were given another role would pay nobody
        witness: tuple[Role, ...] = ("witness",) if "witness" in roles and "witness" not in chosen else ()
        region, operator = f"region-{number % shape.regions}", f"operator-{number % shape.operators}"
        made.append(Place(name, region, operator, f"subnet-{index}", (*chosen, *witness)))
    _check_roles(shape.roles, given, made)
    return made


def _kinds(shape: Shape) -> Iterator[tuple[str, int, tuple[Role, ...]]]:
    """Name, number within its kind, roles. With a ledger the first storage node of each operator is a witness too."""
    for number in range(shape.nodes):
        is_witness = shape.ledger != "none" and number < shape.operators
        yield _name("node", number, shape.nodes), number, ("ssn", "witness") if is_witness else ("ssn",)
    for number in range(shape.asn):
        yield _name("asn", number, shape.asn), number, ("asn",)
    for number in range(shape.ecn):
        yield _name("edge", number, shape.ecn), number, ("ecn",)


def _name(kind: str, number: int, count: int) -> str:
    return f"{kind}-{number:0{max(2, len(str(count - 1)))}}"


def _check_numbers(shape: Shape) -> None:
    if not shape.nodes >= 1 or min(shape.asn, shape.ecn) < 0 or shape.total > NODES_MAX:
        raise InputError(f"a devnet has 1 to {NODES_MAX} nodes, not {shape.total}")
    for what, count in (("regions", shape.regions), ("operators", shape.operators)):
        if not 1 <= count <= shape.nodes:
            raise InputError(f"{shape.nodes} nodes can have 1 to {shape.nodes} {what}, not {count}")
    if shape.ledger not in get_args(Ledger):
        raise InputError(f"no such ledger: {shape.ledger[:20]!r}", hint="it is one of " + ", ".join(get_args(Ledger)))
    if shape.epoch_ms < EPOCH_MS_MIN:
        raise InputError(f"an epoch has at least {EPOCH_MS_MIN} ms, not {shape.epoch_ms}")
    if not 0 <= shape.latency_ms <= LATENCY_MS_MAX:
        raise InputError(f"a round trip between regions is 0 to {LATENCY_MS_MAX} ms, not {shape.latency_ms}")


def _check_roles(roles: RolesOf, unknown: Mapping[str, object], made: list[Place]) -> None:
    for name in unknown:
        raise InputError(
            f"there is no node {name[:64]!r} in this devnet", hint=f"names are such as {made[0].name} and {made[-1].name}"
        )
    allowed = [role for role in get_args(Role) if role != "origin"]  # an origin belongs to a person's home
    for name, chosen in roles:
        for role in chosen or ("",):
            if role not in allowed or chosen.count(role) > 1:
                raise InputError(
                    f"{name} cannot have the roles {','.join(chosen)!r}", hint=f"each once of: {', '.join(allowed)}"
                )


def parse_roles(texts: list[str]) -> RolesOf:
    """`NAME=ROLE[,ROLE]` each; a name that comes twice has what was said last.

    Raises:
        InputError: not of that form. Whether names and roles exist is checked with the shape.
    """
    found: dict[str, tuple[Role, ...]] = {}
    for text in texts:
        name, equals, roles = text.partition("=")
        if not (name and equals and roles):
            raise InputError(f"not a node with its roles: {text[:80]!r}", hint="the form is NAME=ROLE[,ROLE], node-03=ssn,ecn")
        found[name] = cast("tuple[Role, ...]", tuple(roles.split(",")))  # checked with the shape
    return tuple(found.items())
