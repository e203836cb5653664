"""A local network of real node processes on 127.0.0.1: laid out, started, stopped, killed, paused.

Decides ports, configuration files and the order of things; nothing about what nodes do. Names, labels and roles come from
runtime/devnet_shape.py. A devnet's home is a complete client home, so `DDS_HOME=DIR dds put x` works at once. Every node's
ports are chosen once, below the system's ephemeral range (a passing connection can then not take a stopped node's port), and
kept.

`up` either brings all nodes up or none; `down` leaves none behind, whoever started them and however that ended. How processes
are recognised: runtime/processes.py. What keeps the ledger: runtime/devnet_engines.py.
"""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil

from dds.primitives.errors import ConfigError, InputError, UnavailableError
from dds.primitives.ids import id_text
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB, KIB
from dds.runtime import processes
from dds.runtime.devnet_engines import PORTS_MAX, LedgerProcesses, LedgerStatus, require_program
from dds.runtime.devnet_shape import HOME_REGION, Place, places
from dds.runtime.devnet_shape import Shape as Shape
from dds.storage.home import (
    PRIVATE_DIRECTORY_MODE,
    ClientConfig,
    Home,
    NodeConfig,
    NodeHome,
    Role,
    load_client_config,
    write_atomic,
    write_client_config,
    write_node_config,
)
from dds.storage.keyfile import load_or_create_key

PORT_MIN: Final = 10_240
PORT_TRIES_MAX: Final = 10_000
EPHEMERAL_PORT_MIN: Final = 32_768  # where the system does not say
READY_TIMEOUT_S: Final = 60.0
STOP_GRACE_S: Final = 10.0
TRASH_WINDOW_S: Final = 10
CAPACITY_BYTES: Final = 20 * GIB
DAEMON: Final = "dds.runtime.daemon"
HOSTILE_DAEMON: Final = "dds.runtime.hostile"  # a test aid: serves altered bytes
SETTLE_EPOCHS: Final = 2  # so that pay is seen soon
READING_DEPOSIT: Final = TOKEN  # what the home puts into its deposit when reads must be paid
EDGE_FREE_READ_BYTES_PER_DAY: Final = 64 * KIB  # so that an edge is soon paid, and that is seen
ARCHIVE: Final = "6+6"  # class archive: twelve archive nodes are enough

RUNNING, STOPPED, PAUSED, STARTING = "running", "stopped", "paused", "starting"


Label = Literal["region", "operator", "subnet"]  # what nodes have in common, and go down with
LABELS_SHOWN_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Member:
    """One node as devnet.json knows it."""

    name: str
    id: str
    region: str
    operator: str
    subnet: str
    roles: tuple[Role, ...]
    address: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One row of `devnet status`."""

    name: str
    id: str
    pid: int | None
    region: str
    operator: str
    roles: tuple[str, ...]
    state: str  # running | stopped | paused | starting
    address: str


class _Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """devnet.json."""

    version: int
    network: str
    shape: Shape
    members: tuple[Member, ...]


class Devnet:
    """The devnet of one home. Making the object touches nothing."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def node_home(self, name: str) -> NodeHome:
        return NodeHome(self.home.devnet_dir / "nodes" / name)

    @property
    def exists(self) -> bool:
        return self._plan_file.exists()

    def members(self) -> tuple[Member, ...]:
        """
        Raises:
            ConfigError: there is no devnet here, or its devnet.json does not hold.
        """
        return self._plan().members

    def status(self) -> list[NodeStatus]:
        found = self._processes()
        return [self._status(member, found.get(self.node_home(member.name).root)) for member in self.members()]

    def ledger_status(self) -> LedgerStatus | None:
        """None where nobody keeps one."""
        return self._ledger.status()

    def up(
        self,
        shape: Shape | None = None,
        *,
        capacity_bytes: int = CAPACITY_BYTES,
        on_ready: Callable[[str], None] = lambda _: None,
    ) -> list[NodeStatus]:
        """Lay the network out if it is not there, start all nodes, return when all serve. `on_ready` hears each name.

        Raises:
            InputError: it is up already, or exists in another shape.
            ConfigError: the home belongs to another network, or the ledger needs a program that is not here.
            UnavailableError: a node or the ledger did not start; then none is left running, and a new layout is removed again.
        """
        with self._alone():
            fresh = not self.exists
            if fresh:
                self._lay_out(shape or Shape(), capacity_bytes)
            else:
                self._check_can_start_again(shape)
            try:
                self._ledger.start()
                self._start([member.name for member in self.members()], on_ready)
            except BaseException:
                self._stop_all()
                if fresh:
                    self._remove()
                raise
        return self.status()

    def down(self, *, purge: bool = False) -> int:
        """Stop every node and the ledger, and prove that nothing is left; with `purge` also remove what they stored. Safe to
        repeat.

        Returns:
            how many nodes were stopped.
        """
        if not self.home.devnet_dir.is_dir():
            return 0
        with self._alone():
            stopped = self._stop_all()
            if purge:
                self._remove()
        return stopped

    def start(
        self, names: Sequence[str], *, module: str = DAEMON, on_ready: Callable[[str], None] = lambda _: None
    ) -> list[NodeStatus]:
        """Start stopped nodes, with their addresses, keys and data; those that run already are left alone.

        Raises:
            InputError: unknown names.
            UnavailableError: a node did not start; those started with it are stopped again.
        """
        chosen = self._resolve(names)
        with self._alone():
            found = self._processes()
            missing = [name for name in chosen if self.node_home(name).root not in found]
            try:
                self._ledger.start()
                self._start(missing, on_ready, module=module)
            except BaseException:
                processes.terminate(self._processes(missing).values(), grace_s=STOP_GRACE_S)
                raise
        return self._status_of(chosen)

    def kill(self, names: Sequence[str]) -> list[NodeStatus]:
        """SIGKILL, all at once: what a power cut does to the process."""
        chosen = self._resolve(names)
        processes.kill(self._processes(chosen).values())
        return self._status_of(chosen)

    def stop(self, names: Sequence[str]) -> list[NodeStatus]:
        """SIGTERM: what an operator does."""
        chosen = self._resolve(names)
        processes.terminate(self._processes(chosen).values(), grace_s=STOP_GRACE_S)
        return self._status_of(chosen)

    def pause(self, names: Sequence[str]) -> list[NodeStatus]:
        """SIGSTOP: connected, and silent."""
        return self._signal(names, signal.SIGSTOP)

    def resume(self, names: Sequence[str]) -> list[NodeStatus]:
        return self._signal(names, signal.SIGCONT)

    def with_label(self, label: Label, value: str) -> list[str]:
        """The names of the nodes that share a region, an operator or a subnet.

        Raises:
            InputError: nobody has it; the hint names the values that there are.
        """
        found = {member.name: _labels(member)[label] for member in self.members()}
        names = [name for name, its in found.items() if its == value]
        if not names:
            known = list(dict.fromkeys(found.values()))
            more = f" and {len(known) - LABELS_SHOWN_MAX} more" if len(known) > LABELS_SHOWN_MAX else ""
            hint = f"{label}s are " + ", ".join(known[:LABELS_SHOWN_MAX]) + more
            raise InputError(f"no node of this devnet has the {label} {value[:64]!r}", hint=hint)
        return names

    def outage(self, label: Label, value: str, *, pause: bool = False) -> list[NodeStatus]:
        """Everything with that label goes at once, killed or with `pause` silent; the rest of the devnet is not told.

        Raises:
            InputError: nobody has the label.
        """
        names = self.with_label(label, value)
        return self.pause(names) if pause else self.kill(names)

    def out(self) -> list[NodeStatus]:
        """The nodes that do not serve: stopped, killed or paused."""
        return [row for row in self.status() if row.state in (STOPPED, PAUSED)]

    def restore(
        self, names: Sequence[str] | None = None, *, on_ready: Callable[[str], None] = lambda _: None
    ) -> list[NodeStatus]:
        """Start what is stopped and let go on what is paused; without names, all of it. Returns the nodes that were out.

        Raises:
            InputError: unknown names.
            UnavailableError: a node did not start; those started with it are stopped again.
        """
        chosen = None if names is None else set(self._resolve(names))
        rows = [row for row in self.out() if chosen is None or row.name in chosen]
        self.resume([row.name for row in rows if row.state == PAUSED])
        self.start([row.name for row in rows if row.state == STOPPED], on_ready=on_ready)
        return self._status_of(row.name for row in rows)

    @property
    def _plan_file(self) -> Path:
        return self.home.devnet_dir / "devnet.json"

    def _plan(self) -> _Plan:
        try:
            return msgspec.json.decode(self._plan_file.read_bytes(), type=_Plan)
        except FileNotFoundError:
            raise ConfigError(f"there is no devnet in {self.home.root}", hint="make one: dds devnet up") from None
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self._plan_file}: {error}") from None

    def _processes(self, names: Sequence[str] | None = None) -> dict[Path, psutil.Process]:
        """The live processes of the named nodes; without names, of every node that has a directory here."""
        if names is None:
            directory = self.home.devnet_dir / "nodes"
            homes = list(directory.iterdir()) if directory.is_dir() else []
            return processes.find(homes)
        return processes.find(self.node_home(name).root for name in names)

    def _status(self, member: Member, process: psutil.Process | None) -> NodeStatus:
        state = processes.STOPPED
        if process is not None:
            written = self.node_home(member.name).read_state()
            state = processes.state_of(process, written.pid if written is not None else None)
        pid = process.pid if process is not None else None
        return NodeStatus(member.name, member.id, pid, member.region, member.operator, member.roles, state, member.address)

    def _status_of(self, names: Iterable[str]) -> list[NodeStatus]:
        wanted = set(names)
        return [row for row in self.status() if row.name in wanted]

    def _resolve(self, names: Sequence[str]) -> list[str]:
        """Names for names or NodeIDs."""
        members = self.members()
        by_text = {member.id: member.name for member in members} | {member.name: member.name for member in members}
        for name in names:
            if name not in by_text:
                raise InputError(
                    f"there is no node {name[:64]!r} in this devnet",
                    hint=f"names are such as {members[0].name} and {members[-1].name}; see: dds devnet status",
                )
        return list(dict.fromkeys(by_text[name] for name in names))

    def _signal(self, names: Sequence[str], number: signal.Signals) -> list[NodeStatus]:
        chosen = self._resolve(names)
        for process in self._processes(chosen).values():
            processes.send(process, number)
        return self._status_of(chosen)

    def _check_can_start_again(self, shape: Shape | None) -> None:
        plan = self._plan()
        if running := len(self._processes()):
            raise InputError(
                f"the devnet in {self.home.root} is up already: {running} of {len(plan.members)} nodes run",
                hint="see 'dds devnet status'; stop it with 'dds devnet down', start killed nodes with 'dds devnet start'",
            )
        if shape is not None and shape != plan.shape:
            raise InputError(
                f"the devnet in {self.home.root} has {plan.shape.described()}",
                hint="leave the numbers out to start it again, or remove it with 'dds devnet down --purge'",
            )

    def _start(self, names: Sequence[str], on_ready: Callable[[str], None], *, module: str = DAEMON) -> None:
        pipes: dict[str, int] = {}
        for name in names:
            node = self.node_home(name)
            node.state_file.unlink(missing_ok=True)
            _, pipes[name] = processes.spawn(module, node.root, console=self._console(name))
        failures = processes.await_ready(pipes, timeout_s=READY_TIMEOUT_S, on_ready=on_ready)
        for name, problem in failures.items():
            said = processes.last_line(self._console(name))
            raise UnavailableError(
                f"{name} did not start: {problem}{': ' + said if said else ''}",
                hint="the nodes that had started were stopped again",
                node=name,
            )

    def _console(self, name: str) -> Path:
        return self.node_home(name).root / "console.log"

    def _stop_all(self) -> int:
        """The nodes first: they have something to say to the ledger until the end."""
        stopped = 0
        while found := self._processes():
            processes.terminate(found.values(), grace_s=STOP_GRACE_S)
            stopped += len(found)
        self._ledger.stop()
        return stopped

    @property
    def _ledger(self) -> LedgerProcesses:
        return LedgerProcesses(self.home.devnet_dir / "ledger")

    def _lay_out(self, shape: Shape, capacity_bytes: int) -> None:
        laid = places(shape)
        require_program(shape.ledger)
        self._check_home_is_free()
        network = f"devnet-{secrets.token_hex(4)}"
        ports = free_ports(shape.total + PORTS_MAX)
        members = [self._new_member(place, port) for place, port in zip(laid, ports, strict=False)]
        ledger = self._lay_out_ledger(network, members, ports[shape.total :], shape, capacity_bytes)
        peers = tuple(f"{member.id}@{member.address}" for member in members)
        hosts = tuple(member.address for member in members)
        for member in members:
            port = int(member.address.rpartition(":")[2])
            config = NodeConfig(
                name=member.name,
                network=network,
                port=port,
                dht_port=port,
                region=member.region,
                operator=member.operator,
                subnet=member.subnet,
                roles=member.roles,
                ledger=ledger,
                settle_epochs=SETTLE_EPOCHS,
                capacity_bytes=capacity_bytes,
                trash_window_s=TRASH_WINDOW_S,
                simulated_rtt_ms=shape.latency_ms,
                bootstrap=tuple(peer for peer in peers if not peer.startswith(member.id)),
                dht_bootstrap=tuple(host for host in hosts if host != member.address),
            )
            if "ecn" in member.roles:
                config = replace(config, free_read_bytes_per_day=EDGE_FREE_READ_BYTES_PER_DAY)
            write_node_config(self.node_home(member.name).config_file, config)
        own = ClientConfig(network, peers, hosts, ledger=ledger, accept_quotes=True)
        own = replace(
            own,
            region=HOME_REGION,
            simulated_rtt_ms=shape.latency_ms,
            archive=ARCHIVE,
            reading_deposit=READING_DEPOSIT if ledger else 0,
        )
        write_client_config(self.home.config_file, own)
        write_atomic(self._plan_file, msgspec.json.encode(_Plan(1, network, shape, tuple(members))))

    def _new_member(self, place: Place, port: int) -> Member:
        node = self.node_home(place.name)
        node.root.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        key = load_or_create_key(node.key_file)
        labels = (place.region, place.operator, place.subnet)
        return Member(place.name, id_text(key.public), *labels, place.roles, f"127.0.0.1:{port}")

    def _lay_out_ledger(
        self, network: str, members: Sequence[Member], ports: Sequence[int], shape: Shape, capacity_bytes: int
    ) -> str:
        if shape.ledger == "none":
            return ""
        from dds.runtime.devnet_ledger import make_genesis

        genesis = make_genesis(self.home, network, members, capacity_bytes=capacity_bytes, epoch_ms=shape.epoch_ms)
        return self._ledger.lay_out(shape.ledger, genesis, ports)

    def _check_home_is_free(self) -> None:
        """A devnet writes config.toml: never over one that connects to another network."""
        if self.home.config_file.exists():
            network = load_client_config(self.home.config_file).network
            raise ConfigError(
                f"{self.home.root} is connected to the network {network!r} already",
                hint="give the devnet a home of its own: dds devnet up --home DIR",
            )

    def _remove(self) -> None:
        """Remove the network and what this home knew of it; the creator's key stays."""
        for path in (self.home.devnet_dir / "nodes", self._ledger.root, self.home.spool_dir):
            shutil.rmtree(path, ignore_errors=True)
        for pattern in ("catalog.sqlite*", "config.toml"):
            for path in self.home.root.glob(pattern):
                path.unlink()
        self._plan_file.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep two commands from starting and stopping the same nodes at once; a dead holder frees the lock by dying."""
        self.home.devnet_dir.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        descriptor = os.open(self.home.devnet_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise InputError(
                f"another command is starting or stopping the devnet in {self.home.root}", hint="try again when it has ended"
            ) from None
        finally:
            os.close(descriptor)


def _labels(member: Member) -> dict[Label, str]:
    return {"region": member.region, "operator": member.operator, "subnet": member.subnet}


def status_document(rows: Iterable[NodeStatus], ledger: LedgerStatus | None) -> dict[str, object]:
    """What `devnet status --json` prints."""
    return {"nodes": [asdict(row) for row in rows], "ledger": asdict(ledger) if ledger is not None else None}


def free_ports(count: int) -> list[int]:
    """`count` distinct ports on 127.0.0.1 that are free for TCP and UDP now, below the ephemeral range.

    Raises:
        UnavailableError: there are not that many.
    """
    top = EPHEMERAL_PORT_MIN
    with suppress(OSError, ValueError, IndexError):
        top = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen: list[int] = []
    candidates = list(range(PORT_MIN, top)) if top > PORT_MIN + count else list(range(PORT_MIN, 65_536))
    random.SystemRandom().shuffle(candidates)
    for port in candidates[:PORT_TRIES_MAX]:
        if len(chosen) == count:
            break
        if _is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise UnavailableError(f"only {len(chosen)} of {count} free ports found on 127.0.0.1")
    return chosen


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
