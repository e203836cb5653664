"""`dds doctor` for one node: what it must bring and lacks, how it stands on the ledger, and how others see it from outside.

Decides what is compared with what. A running node is asked with its own key, and asks other nodes to dial it back
(docs/spec/wire.md, "Dial-back"); the ledger is read with proofs. Nothing is changed.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from dds.apps.cli.checks import OUTSIDE, SERVES, Check, Grade
from dds.apps.cli.requirements import STORAGE_ROLES, Requirements, requirements_of
from dds.apps.cli.session import Session, fields, run_async
from dds.primitives.errors import ConfigError, DDSError
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.ledger.params import Params
    from dds.primitives.keys import SigningKey
    from dds.storage.home import NodeConfig, NodeHome
    from dds.wire.dialback import Observation, SelfTestReply

CLOCK_WARN_MS: Final = 2_000
CLOCK_FAIL_MS: Final = 60_000  # records from the future are refused, and receipts expire
TRANSFER_BYTES: Final = 1 << 20  # that one observer may fetch, to measure
SHORT_CHARS: Final = 12


@dataclass(frozen=True, slots=True)
class Patient:
    """The node that is looked at."""

    files: NodeHome
    config: NodeConfig
    key: SigningKey
    names: dict[str, str]  # NodeID -> what a devnet calls it


def find_node(session: Session, text: str) -> NodeHome:
    """A node's directory, a home with a node in it, or the name of one of this home's devnet.

    Raises:
        ConfigError: no node there.
    """
    from dds.storage.home import Home, NodeHome, home_path

    path = Path(text).absolute()
    named = home_path(session.home) / "devnet" / "nodes" / text
    for node in (NodeHome(path), Home(path).node, NodeHome(named)):
        if node.config_file.exists():
            return node
    raise ConfigError(f"there is no node in {path}", hint="give its directory (with node.toml), or a devnet's node-03")


def examine_node(session: Session, files: NodeHome, *, must_run: bool) -> Iterator[Check]:
    """All checks of one node, cheap ones first. `must_run`: somebody asked for this node by name."""
    from dds.runtime import processes
    from dds.storage.home import load_node_config
    from dds.storage.keyfile import load_key

    try:
        config = load_node_config(files.config_file)
        yield Check("node", "ok", f"{config.name}, {'+'.join(config.roles)}, in {config.region} of {config.operator}")
        yield check_key_file(files.key_file)
        patient = Patient(files, config, load_key(files.key_file), _devnet_names(session, files))
    except DDSError as error:
        yield Check("node", "fail", error.message, error.hint or f"edit {files.config_file}")
        return
    params, ledger = _ledger_checks(patient)
    least = requirements_of(params)
    yield from check_capacity(config, least)
    runs = bool(processes.find([files.root]))
    yield from check_disk_of(files, config, _health(patient) if runs else None)
    yield from check_ports(config, runs=runs)
    yield from ledger
    if runs or must_run:
        yield from check_outside(patient, least, runs=runs)
    else:
        yield Check(SERVES, "warn", "it does not run", "dds node run")


def check_key_file(path: Path) -> Check:
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    if mode & 0o077:
        return Check("key", "fail", f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    return Check("key", "ok", f"{path} is its owner's alone")


# -- what it must bring -----------------------------------------------------------------------------------------------------


def check_capacity(config: NodeConfig, least: Requirements) -> Iterator[Check]:
    """Space and bandwidth as they are declared."""
    if not STORAGE_ROLES.isdisjoint(config.roles):
        text = f"offers {human_bytes(config.capacity_bytes)}, at least {human_bytes(least.capacity_bytes_min)}"
        small = config.capacity_bytes < least.capacity_bytes_min
        yield Check("capacity", "fail" if small else "ok", text, "raise capacity_bytes in node.toml" if small else "")
    for name, cap in (("upload", config.upload_bytes_per_s), ("download", config.download_bytes_per_s)):
        if 0 < cap < least.bandwidth_bytes_per_s_min:
            text = f"{name} is capped at {human_bytes(cap)}/s, at least {human_bytes(least.bandwidth_bytes_per_s_min)}/s"
            yield Check("bandwidth", "fail", text, f"raise {name}_bytes_per_s in node.toml")


def check_disk_of(files: NodeHome, config: NodeConfig, health: dict[str, object] | None) -> Iterator[Check]:
    """Whether the disk has what the node still promises: a running node says how much of its capacity is free."""
    said = health.get("free_bytes") if health else None
    promised = said if isinstance(said, int) else config.capacity_bytes
    free = shutil.disk_usage(files.root).free
    text = f"{human_bytes(free)} free on the disk, {human_bytes(promised)} of its {human_bytes(config.capacity_bytes)} to fill"
    if free >= promised:
        yield Check("disk", "ok", text)
    elif health is None and files.store_dir.exists():
        yield Check("disk", "warn", f"{text} (what it holds already counts twice while it does not run)", "start it to know")
    else:
        yield Check("disk", "fail", text, f"lower capacity_bytes in {files.config_file}, or make room")


def check_ports(config: NodeConfig, *, runs: bool) -> Iterator[Check]:
    if runs:
        yield Check("ports", "ok", f"TCP {config.host}:{config.port} and UDP {config.host}:{config.dht_port} are its own")
        return
    for kind, port in (("TCP", config.port), ("UDP", config.dht_port)):
        if port:
            yield check_port(config.host, port, kind)


def check_port(host: str, port: int, kind: str) -> Check:
    """Whether a port of this machine could be bound now."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == "TCP")
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check("ports", "fail", f"{kind} {host}:{port}: {error.strerror}", "free the port, or change node.toml")
    return Check("ports", "ok", f"{kind} {host}:{port} is free")


# -- the ledger -------------------------------------------------------------------------------------------------------------


def _ledger_checks(patient: Patient) -> tuple[Params | None, list[Check]]:
    if not patient.config.ledger:
        return None, []
    try:
        return run_async(_read_ledger(patient))
    except DDSError as error:
        return None, [Check("ledger", "fail", f"it cannot be asked: {error.message}", error.hint or "does its host run?")]


async def _read_ledger(patient: Patient) -> tuple[Params, list[Check]]:
    from dds.apps.cli.stake import price_now
    from dds.apps.cli.standing_text import standing_checks
    from dds.ledger.records import CHAIN, NODES, NUMBERS, OPERATORS, PARAMS, STANDINGS, NodeStatus, number_key
    from dds.runtime.ledger_client import open_ledger

    async with open_ledger(patient.config.ledger, network=patient.config.network) as ledger:
        params, chain = await ledger.find(PARAMS), await ledger.find(CHAIN)
        assert params is not None
        assert chain is not None, "genesis puts both there"
        entry = await ledger.find(NUMBERS, patient.key.public)
        node = None if entry is None else await ledger.find(NODES, number_key(entry.number))
        if node is None:
            return params, [Check("ledger", "fail", "the ledger does not know this node", "dds stake register")]
        standing, operator = await ledger.find_many([(STANDINGS, number_key(node.number)), (OPERATORS, node.operator)])
        numbers = () if operator is None else operator.nodes
        siblings = await ledger.find_many([(NODES, number_key(number)) for number in numbers])
        epoch = (await ledger.head()).epoch
    offered = sum(
        each.capacity_bytes
        for each in siblings
        if each is not None and each.status == NodeStatus.ACTIVE and not STORAGE_ROLES.isdisjoint(each.roles)
    )
    return params, standing_checks(node, standing, operator, offered, params, epoch, price_now(chain, node.roles))


# -- from outside -----------------------------------------------------------------------------------------------------------


def _health(patient: Patient) -> dict[str, object] | None:
    """What the running node says of itself; None if it does not answer."""
    from dds.apps.cli.peer import health_of
    from dds.storage.home import parse_host_port

    state = patient.files.read_state()
    if state is None:
        return None
    target = (NodeID(patient.key.public), *parse_host_port(state.address))
    said = run_async(health_of(patient.config.network, [target]))[0]
    return None if isinstance(said, DDSError) else said


def check_outside(patient: Patient, least: Requirements, *, runs: bool) -> Iterator[Check]:
    """How other nodes see this one: reachability, clock, speed, and how they rate it."""
    state = patient.files.read_state()
    if not runs or state is None:
        yield Check(SERVES, "fail", "it does not run" if not runs else "it does not serve yet", "dds node run")
        return
    try:
        reply = run_async(_self_test(patient, state.address))
    except DDSError as error:
        yield Check(SERVES, "fail", f"it cannot test itself: {error.message}", error.hint or "see its node.log")
        return
    yield Check(SERVES, "ok", f"at {state.address}, knows {reply.peers} nodes")
    rows = [observed(each, patient.names) for each in reply.observations]
    yield from rows
    yield from _outside_verdict(reply, rows)
    yield from check_clock_skew([each.clock_skew_ms for each in reply.observations if each.reply is not None])
    yield from check_speed(reply, least)


async def _self_test(patient: Patient, address: str) -> SelfTestReply:
    from dds.runtime.dialback import ask_self_test
    from dds.storage.home import parse_host_port
    from dds.transport.client import PeerClient
    from dds.wire.dialback import OBSERVERS_MAX, SelfTestRequest

    node = NodeID(patient.key.public)
    async with PeerClient(patient.key, network=patient.config.network) as client:
        client.learn(node, [parse_host_port(address)])
        return await ask_self_test(client, node, SelfTestRequest(OBSERVERS_MAX, TRANSFER_BYTES))


def observed(seen: Observation, names: dict[str, str]) -> Check:
    """`seen from region-2 by node-07: reachable, 81 ms, 40.0 MiB/s, healthy`."""
    who = id_text(seen.node_id)
    head = f"seen from {seen.region} by {names.get(who, who[:SHORT_CHARS])}: "
    if seen.reply is None:
        return Check(OUTSIDE, "warn", f"{head}no word: {seen.problem}", "nothing, if others reach it", fields(seen))
    reached = [address for address in seen.reply.seen if not address.problem]
    if not reached:
        problems = "; ".join(f"{each.address} {each.problem}" for each in seen.reply.seen) or "its record names no address"
        todo = "open the port, or correct `advertised` in node.toml"
        return Check(OUTSIDE, "warn", f"{head}not reachable: {problems}", todo, fields(seen))
    best = min(reached, key=lambda address: address.round_trip_us)
    speed = max(address.bytes_per_s for address in reached)
    parts = ["reachable", f"{best.round_trip_us / 1000:.3g} ms"]
    parts += [f"{human_bytes(speed)}/s"] if speed else []
    parts.append(seen.reply.health or "not known there yet")
    return Check(OUTSIDE, "ok", head + ", ".join(parts), "", fields(seen))


def _outside_verdict(reply: SelfTestReply, rows: list[Check]) -> Iterator[Check]:
    """Nobody who looked reached it: that is what fails. One observer's failure may be its own."""
    if not rows:
        yield Check(OUTSIDE, "warn", "it knows no node that could look", "is bootstrap in node.toml right? wait, and try again")
    looked = [each.reply for each in reply.observations if each.reply is not None]
    if rows and not looked:
        yield Check(OUTSIDE, "fail", f"none of {len(rows)} nodes gave an answer", "is this machine connected?")
    if looked and all(address.problem for said in looked for address in said.seen):
        todo = "open the port in the firewall or router, or correct `advertised` in node.toml"
        yield Check(OUTSIDE, "fail", f"none of the {len(looked)} nodes that looked could reach it", todo)


def check_clock_skew(skews_ms: list[int]) -> Iterator[Check]:
    """Against the middle one of the observers' clocks."""
    if not skews_ms:
        return
    skew_ms = round(median(skews_ms))
    text = f"{abs(skew_ms) / 1000:.1f} s {'behind' if skew_ms > 0 else 'ahead of'} the clocks of {len(skews_ms)} nodes"
    grade: Grade = "ok" if abs(skew_ms) <= CLOCK_WARN_MS else "warn" if abs(skew_ms) <= CLOCK_FAIL_MS else "fail"
    yield Check("clock", grade, text, "" if grade == "ok" else "set the system's clock, for example with NTP")


def check_speed(reply: SelfTestReply, least: Requirements) -> Iterator[Check]:
    """The fastest that anybody measured: one connection, its round trip counted in."""
    rates = [address.bytes_per_s for each in reply.observations if each.reply is not None for address in each.reply.seen]
    best = max(rates, default=0)
    if not best:
        return
    text = f"{human_bytes(best)}/s measured from outside, at least {human_bytes(least.bandwidth_bytes_per_s_min)}/s"
    slow = best < least.bandwidth_bytes_per_s_min
    yield Check("bandwidth", "fail" if slow else "ok", text, "a faster line, or less other traffic" if slow else "")


def _devnet_names(session: Session, files: NodeHome) -> dict[str, str]:
    """What a devnet calls its nodes, if the node is one of its, or the session's home has one."""
    from dds.runtime.devnet import Devnet
    from dds.storage.home import Home, home_path

    for root in (files.root.parent.parent.parent, home_path(session.home)):
        devnet = Devnet(Home(root))
        if devnet.exists:
            return {member.id: member.name for member in devnet.members()}
    return {}
