"""`dds doctor`: what could keep this home from working, and what to do about it."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds import __version__
from dds.apps.cli import exits
from dds.apps.cli.checks import Check, Grade, exit_code_of
from dds.apps.cli.session import Session, command, run_async
from dds.apps.cli.version import LIBRARIES
from dds.primitives.errors import DDSError
from dds.primitives.units import GIB, human_bytes

if TYPE_CHECKING:
    from dds.storage.home import ClientConfig, Home

PYTHON_MIN: Final = (3, 11)
RELEASED_UNIX_S: Final = 1_735_689_600  # 2025-01-01: a clock before it is wrong
CLOCK_FAR_UNIX_S: Final = 4_102_444_800  # 2100-01-01
DISK_FREE_BYTES_MIN: Final = GIB
DHT_TIMEOUT_S: Final = 8.0
LAN_TIMEOUT_S: Final = 5.0
LAN_GRACE_S: Final = 1.0  # for others, once a first node has answered
LAN_SHOWN_MAX: Final = 8


def register(app: typer.Typer) -> None:
    command(app)(doctor)


def doctor(
    session: Session,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="DIR", help="Look at the node in DIR, or a devnet's node-03, and from outside at it."),
    ] = None,
) -> None:
    """Check this machine, this home and its network; its node too, and how others see it.

    Ends with 1 when a check fails, with 4 when all that fails is that the node cannot be reached.
    """
    checks = []
    for check in examine(session) if node is None else examine_one(session, node):
        checks.append(check)
        if not session.json:
            print(f"{check.grade:<5} {check.name:<10} {check.found}", flush=True)
            if check.todo and check.grade != "ok":
                print(f"      {'':<10} -> {check.todo}", flush=True)
    code = exit_code_of(checks)
    if session.json:
        session.result({"ok": code == exits.OK, "checks": checks}, "")
    if code != exits.OK:
        raise typer.Exit(code)


def examine(session: Session) -> Iterator[Check]:
    """All checks, cheap ones first; a check that cannot be made because another failed is left out."""
    yield check_python()
    yield check_libraries()
    yield check_clock(time.time())
    try:
        home = session.open_home()
    except DDSError as error:
        yield Check("home", "fail", error.message, error.hint or "")
        return
    yield Check("home", "ok", str(home.root))
    yield from check_keys(home)
    yield check_disk(home)
    yield from check_node(session, home)
    yield from check_network(home)


def examine_one(session: Session, node: str) -> Iterator[Check]:
    """The machine, and one node on it."""
    from dds.apps.cli.doctor_node import examine_node, find_node

    yield check_python()
    yield check_libraries()
    yield check_clock(time.time())
    yield from examine_node(session, find_node(session, node), must_run=True)


def check_python() -> Check:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < PYTHON_MIN:
        return Check("python", "fail", found, "DDS needs Python 3.11 or newer")
    return Check("python", "ok", found)


def check_libraries() -> Check:
    from importlib import metadata

    missing = []
    for name in LIBRARIES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("versions", "fail", "missing: " + ", ".join(missing), "install dds again with its requirements")
    return Check("versions", "ok", f"dds {__version__} with " + ", ".join(f"{n} {metadata.version(n)}" for n in LIBRARIES))


def check_clock(now_unix_s: float) -> Check:
    """Records and receipts expire, so a clock that is years off makes everything look stale."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(max(0.0, now_unix_s), 2.0**35)))
    if not RELEASED_UNIX_S <= now_unix_s < CLOCK_FAR_UNIX_S:
        return Check("clock", "fail", shown, "set the system's clock, for example with NTP")
    return Check("clock", "ok", shown)


def check_keys(home: Home) -> Iterator[Check]:
    from dds.apps.cli.doctor_node import check_key_file

    for path in (home.identity_file, home.node.key_file):
        if path.exists():
            yield check_key_file(path)


def check_disk(home: Home) -> Check:
    free = shutil.disk_usage(home.root).free
    found = f"{human_bytes(free)} free in {home.root}"
    if free < DISK_FREE_BYTES_MIN:
        return Check("disk", "warn", found, f"uploads need space for a while: keep {human_bytes(DISK_FREE_BYTES_MIN)} free")
    return Check("disk", "ok", found)


def check_node(session: Session, home: Home) -> Iterator[Check]:
    """The home's own node, if there is one."""
    from dds.apps.cli.doctor_node import examine_node

    if home.node.config_file.exists():
        yield from examine_node(session, home.node, must_run=False)


def check_network(home: Home) -> Iterator[Check]:
    """config.toml, then whom it names."""
    try:
        config = home.client_config()
    except DDSError as error:
        yield Check("config", "fail", error.message, error.hint or f"edit {home.config_file}")
        return
    yield Check("config", "ok", f"network {config.network}, {len(config.bootstrap)} bootstrap nodes")
    if config.lan:
        yield _guarded("lan", lambda: check_lan(config))
    if config.bootstrap or not config.lan:
        yield _guarded("bootstrap", lambda: check_bootstrap(config))
    if config.dht_bootstrap or not config.lan:
        yield _guarded("dht", lambda: check_dht(config))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except DDSError as error:
        return Check(name, "fail", error.message, error.hint or "")


def check_bootstrap(config: ClientConfig) -> Check:
    """Every bootstrap node is dialled, and must prove its NodeID."""
    from dds.apps.cli.peer import health_of
    from dds.storage.home import parse_node_address

    if not config.bootstrap:
        return Check("bootstrap", "fail", "no bootstrap nodes", "add bootstrap = [...] to config.toml")
    targets = [parse_node_address(text) for text in config.bootstrap]
    said = run_async(health_of(config.network, targets))
    bad = [text for text, answer in zip(config.bootstrap, said, strict=True) if isinstance(answer, DDSError)]
    found = f"{len(said) - len(bad)} of {len(said)} nodes answer"
    if not bad:
        return Check("bootstrap", "ok", found)
    first = next(answer.message for answer in said if isinstance(answer, DDSError))
    grade: Grade = "warn" if len(bad) < len(said) else "fail"
    return Check("bootstrap", grade, f"{found}; {bad[0]}: {first}", "start them, or remove them from config.toml")


def check_lan(config: ClientConfig) -> Check:
    """Who says on the local network that it is there, and who of them answers under its NodeID."""
    found, answered = run_async(_look_on_lan(config))
    shown = f"{len(answered)} of {len(found)} nodes found answer" + "".join(f"; {each}" for each in answered[:LAN_SHOWN_MAX])
    if answered:
        return Check("lan", "ok", shown)
    todo = "is a node of this network running there, with lan = true in its node.toml? does a firewall stop UDP port 5353?"
    return Check("lan", "warn" if config.bootstrap else "fail", shown, todo)


async def _look_on_lan(config: ClientConfig) -> tuple[list[str], list[str]]:
    """Everybody found, and who answered, as NODEID@host:port."""
    import asyncio

    from dds.primitives.ids import id_text
    from dds.runtime.lan import LanPeers
    from dds.transport.client import PeerClient
    from dds.wire.discovery import format_address

    async with PeerClient(None, network=config.network) as client:
        lan = LanPeers(client, config.network, config.lan_host, lambda _record, _sender: None)
        lan.start()
        try:
            if await lan.wait_for_first(LAN_TIMEOUT_S):
                await asyncio.sleep(LAN_GRACE_S)
            shown = {find.node_id: f"{id_text(find.node_id)}@{format_address(*find.addresses[0])}" for find in lan.found}
            return list(shown.values()), [shown[node] for node in lan.answered if node in shown]
        finally:
            await lan.stop()


def check_dht(config: ClientConfig) -> Check:
    """A value is put on the DHT, and another node must take it."""
    if not config.dht_bootstrap:
        return Check("dht", "fail", "no DHT bootstrap nodes", "add dht_bootstrap = [...] to config.toml")
    took = run_async(_put_on_dht(config))
    if took is None:
        return Check("dht", "fail", f"no node took a value within {DHT_TIMEOUT_S:.0f} s", "is UDP blocked by a firewall?")
    return Check("dht", "ok", f"a value was taken after {took:.2f} s")


async def _put_on_dht(config: ClientConfig) -> float | None:
    import os

    from dds.storage.home import parse_host_port
    from dds.transport.dht import KEY_BYTES, DHTNode, ValueType

    hosts = [parse_host_port(text) for text in config.dht_bootstrap]
    local = all(host.startswith("127.") for host, _ in hosts)
    node = DHTNode(config.network)
    started = time.monotonic()
    await node.start("127.0.0.1" if local else "0.0.0.0", 0, hosts)  # noqa: S104 - a client's own UDP socket
    try:
        taken = await node.put(os.urandom(KEY_BYTES), b"dds doctor", ValueType.NODE, timeout_s=DHT_TIMEOUT_S)
        return time.monotonic() - started if taken else None
    finally:
        await node.stop()
