"""The home directory: where a person's or a node's files lie, and the two configuration files in it.

    HOME/  0700
      config.toml      the network's name and whom to ask first
      identity.key     the creator's Ed25519 seed, 0600
      wallets/         further accounts on the ledger: NAME.key, 0600
      catalog.sqlite   what this home has published, and uploads that were broken off
      spool/           data space of uploads in progress
      policy.toml      which class a put gets, where somebody has written one (storage/policy_file.py)
      node/            one node, if this home runs one: node.toml, node.key, store/, origin/, edge/, node.log, state.json
      devnet/          a local network: devnet.json and nodes/NAME/, each laid out like node/ above

Decides names, permissions, the keys of the configuration and their limits. Does not decide what is in the store, the catalog or
a key file. Reading is strict: an unknown key, a wrong type or a value out of range is a ConfigError that names file and key.
Writing is atomic (temporary file, fsync, rename), so that a crash leaves the old file or the new one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

import msgspec

from dds.primitives.errors import ConfigError, InputError
from dds.primitives.ids import NodeID, parse_id
from dds.primitives.units import ARCHIVE_AFTER_DAYS_MAX, GIB, MIB

if TYPE_CHECKING:
    from dds.primitives.keys import SigningKey

HOME_VARIABLE: Final = "DDS_HOME"
PRIVATE_DIRECTORY_MODE: Final = 0o700
PRIVATE_FILE_MODE: Final = 0o600
CONFIG_FILE_BYTES_MAX: Final = MIB
BOOTSTRAP_COUNT_MAX: Final = 1024
DAY_S: Final = 86_400

Role = Literal["origin", "ssn", "asn", "ecn", "witness", "gateway"]
Label = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]  # a name that is safe in logs and paths
Host = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
LanHost = Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,3}(\.[0-9]{1,3}){3})?$")]  # IPv4, or none
HostPort = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}$")]
NodeAddress = Annotated[str, msgspec.Meta(pattern=r"^[a-z2-7]{52}@.{3,260}$")]  # NODEID@host:port
LedgerAddress = Annotated[str, msgspec.Meta(pattern=r"^([a-z2-7]{52}@.{3,260})?$")]  # NODEID@host:port, or none
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
ByteCount = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Relays = Annotated[
    tuple[Annotated[str, msgspec.Meta(pattern=r"^https://[a-z0-9.-]{1,100}(:[1-9][0-9]{0,4})?/?$")], ...],
    msgspec.Meta(max_length=2),
]
RoundTrip = Annotated[int, msgspec.Meta(ge=0, le=10_000)]  # milliseconds
ArchiveDays = Annotated[int, msgspec.Meta(ge=0, le=ARCHIVE_AFTER_DAYS_MAX)]
Peers = Annotated[tuple[NodeAddress, ...], msgspec.Meta(max_length=BOOTSTRAP_COUNT_MAX)]
Hosts = Annotated[tuple[HostPort, ...], msgspec.Meta(max_length=BOOTSTRAP_COUNT_MAX)]


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """config.toml."""

    network: Label
    bootstrap: Peers = ()  # asked first for content and peers
    dht_bootstrap: Hosts = ()
    host: Host = "127.0.0.1"  # bound while a put serves its own content; others read from it only at an address they can dial
    ledger: LedgerAddress = ""  # the ledger host that is asked and sent to; empty: this home uses none
    accept_quotes: bool = False  # a put shows what it costs and goes on, without being asked
    region: Label = "local"  # where this home is: nodes of the same region are asked first
    reading_deposit: ByteCount = 0  # base units put into the deposit when it cannot pay for reads; 0: only free reads
    reading_price_max: ByteCount = 10_000  # base units per KiB; who asks more is not read from
    simulated_rtt_ms: RoundTrip = 0  # added to every exchange with a node of another region; a devnet's test aid
    iroh: bool = False  # reach nodes that cannot be dialled over iroh
    iroh_relays: Relays = ()
    archive: Literal["16+16", "6+6"] = "16+16"  # the geometry of class archive on this network
    lan: bool = False  # look for nodes on the local network; then no bootstrap node is needed there
    lan_host: LanHost = ""  # this machine's address on the interface to look on; empty: all
    archive_after_days: ArchiveDays = 0  # content that nobody read for so long goes to the archive ('dds tier run'); 0: none


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """node.toml. A limit of 0 bytes per second means none."""

    name: Label
    network: Label
    host: Host = "127.0.0.1"  # bound; never all interfaces unless the operator writes so
    port: Port = 0  # 0: any free one at the first start, kept from then on
    dht_port: Port = 0
    advertised: Hosts = ()  # what others dial; empty: host and port above
    roles: Annotated[tuple[Role, ...], msgspec.Meta(min_length=1, max_length=6)] = ("ssn",)
    region: Label = "local"
    operator: Label = "local"
    subnet: Label = "local"
    capacity_bytes: ByteCount = 20 * GIB
    upload_bytes_per_s: ByteCount = 0
    download_bytes_per_s: ByteCount = 0
    memory_bytes_max: Annotated[int, msgspec.Meta(ge=MIB, le=1 << 62)] = 64 * MIB  # bodies in flight, together
    trash_window_s: Annotated[int, msgspec.Meta(ge=0, le=3650 * DAY_S)] = 7 * DAY_S
    origin_keep_s: Annotated[int, msgspec.Meta(ge=0, le=3650 * DAY_S)] = 3600  # a copy stays so long after the last receipt
    origin_bytes_max: ByteCount = 100 * GIB  # of an origin's own copies, together
    bootstrap: Peers = ()
    dht_bootstrap: Hosts = ()
    nat: Literal["off", "auto"] = "off"  # ask the router, by UPnP or NAT-PMP, to pass our ports on
    iroh: bool = False  # be reached over iroh too, and reach others so, where dialling does not work
    iroh_port: Port = 0  # UDP; 0: any free one
    iroh_relays: Relays = ()  # servers that help two nodes behind routers to meet
    ledger: LedgerAddress = ""  # the ledger host that pays it: audits are read there; empty: it stores for nothing
    settle_epochs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 24  # how often the ledger pays out what it has earned
    read_price: ByteCount = 1_862  # base units per KiB that is read here beyond what is free
    free_read_bytes_per_day: ByteCount = GIB  # by one reader
    read_debt_bytes_max: ByteCount = 16 * MIB  # read, not free and not paid: then the reader is stopped until it pays
    reading_deposit: ByteCount = 0  # as in config.toml, from the node's own account: pays for what the node reads from others
    reading_price_max: ByteCount = 10_000  # base units per KiB
    edge_bytes_max: ByteCount = 10 * GIB  # of an edge's cache
    edge_ttl_s: Annotated[int, msgspec.Meta(ge=1, le=3650 * DAY_S)] = 7 * DAY_S  # a cached block that nobody reads goes
    simulated_rtt_ms: RoundTrip = 0  # added to every exchange with a node of another region; a devnet's test aid
    lan: bool = False  # be found, and look for others, on the local network that `host` is on
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class NodeState:
    """state.json: written by a running node once it serves, removed at a clean stop."""

    pid: int
    id: str  # the NodeID's text form
    address: str  # host:port of the peer interface
    dht_address: str = ""
    started_ms: int = 0  # since the epoch
    roles: tuple[str, ...] = ()


def parse_node_address(text: str) -> tuple[NodeID, str, int]:
    """Split `NODEID@host:port`; an IPv6 host is in square brackets, returned without them.

    Raises:
        InputError: not of that form.
    """
    name, at, address = text.partition("@")
    if not at:
        raise InputError(f"not a node address: {text[:80]!r}", hint="the form is NODEID@host:port")
    host, port = parse_host_port(address)
    return NodeID(parse_id(name, "NodeID")), host, port


def parse_host_port(text: str) -> tuple[str, int]:
    """Split `host:port`.

    Raises:
        InputError: not of that form.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare) != (bare is not host) or not port.isascii() or not port.isdigit():
        raise InputError(f"not an address: {text[:80]!r}", hint="the form is host:port, [host]:port for IPv6")
    if not 0 < int(port) < 65_536:
        raise InputError(f"not a port: {port[:16]}", hint="1 to 65535")
    return bare, int(port)


@dataclass(frozen=True, slots=True)
class NodeHome:
    """The files of one node."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "node.toml"

    @property
    def key_file(self) -> Path:
        return self.root / "node.key"

    @property
    def store_dir(self) -> Path:
        return self.root / "store"

    @property
    def log_file(self) -> Path:
        return self.root / "node.log"

    @property
    def state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def origin_dir(self) -> Path:
        """One directory for each put that was handed over."""
        return self.root / "origin"

    @property
    def purse_file(self) -> Path:
        """What the node has read from others and promised them."""
        return self.root / "purse.sqlite"

    @property
    def edge_dir(self) -> Path:
        """An edge's cached blocks."""
        return self.root / "edge"

    def read_state(self) -> NodeState | None:
        """The state that the node wrote last; None when there is none. It does not prove that the process still lives."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=NodeState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write_state(self, state: NodeState) -> None:
        write_atomic(self.state_file, msgspec.json.encode(state))


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one person's home."""

    root: Path

    @classmethod
    def open(cls, path: Path | None = None) -> Home:
        """The home at `path`, else at $DDS_HOME, else ~/.dds; created, for its owner only, when it is not there.

        Raises:
            ConfigError: not a directory, another user's, or not to be created.
        """
        return cls(private_directory(home_path(path)))

    @property
    def config_file(self) -> Path:
        return self.root / "config.toml"

    @property
    def identity_file(self) -> Path:
        return self.root / "identity.key"

    @property
    def wallets_dir(self) -> Path:
        return self.root / "wallets"

    @property
    def catalog_file(self) -> Path:
        return self.root / "catalog.sqlite"

    @property
    def policy_file(self) -> Path:
        return self.root / "policy.toml"

    @property
    def spool_dir(self) -> Path:
        return self.root / "spool"

    @property
    def node(self) -> NodeHome:
        return NodeHome(self.root / "node")

    @property
    def devnet_dir(self) -> Path:
        return self.root / "devnet"

    def client_config(self) -> ClientConfig:
        """
        Raises:
            ConfigError: no config.toml, or one that does not hold.
        """
        if not self.config_file.exists():
            raise ConfigError(
                f"{self.root} is not connected to a network: it has no config.toml",
                hint="start a local one with 'dds devnet up', or give the home of one with --home or DDS_HOME",
            )
        return load_client_config(self.config_file)

    def identity(self) -> SigningKey:
        """The creator's key, made at first use."""
        from dds.storage.keyfile import load_or_create_key

        return load_or_create_key(self.identity_file)


def home_path(path: Path | None = None) -> Path:
    """Where the home is, absolute: `path`, else $DDS_HOME, else ~/.dds."""
    chosen = path if path is not None else Path(os.environ.get(HOME_VARIABLE) or "~/.dds")
    return Path(os.path.abspath(chosen.expanduser()))


def private_directory(path: Path) -> Path:
    """Make sure that `path` is a directory of ours that nobody else can enter; a new one gets mode 0700.

    Raises:
        ConfigError: it is not and cannot be.
    """
    try:
        path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        info = path.stat()
    except FileExistsError:
        raise ConfigError(f"{path} is not a directory") from None
    except OSError as error:
        raise ConfigError(f"cannot use the directory {path}: {error.strerror}") from None
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to another user", hint="choose another directory with --home or DDS_HOME")
    if stat.S_IMODE(info.st_mode) & 0o022:
        raise ConfigError(f"{path} can be written by others", hint=f"chmod go-w {path}")
    return path


def load_client_config(path: Path) -> ClientConfig:
    """
    Raises:
        ConfigError: naming the file and the key.
    """
    config = load_config(path, ClientConfig)
    _check_addresses(path, config.bootstrap + ((config.ledger,) if config.ledger else ()), config.dht_bootstrap)
    return config


def in_region(config: ClientConfig, region: str) -> ClientConfig:
    """The same home, standing elsewhere.

    Raises:
        InputError: no name that a region can have.
    """
    try:
        return dataclasses.replace(config, region=msgspec.convert(region, Label))
    except msgspec.ValidationError:
        raise InputError(f"not a region: {region[:64]!r}", hint="letters, digits, dots, hyphens and underscores") from None


def load_node_config(path: Path) -> NodeConfig:
    """
    Raises:
        ConfigError: naming the file and the key.
    """
    config = load_config(path, NodeConfig)
    nodes = config.bootstrap + ((config.ledger,) if config.ledger else ())
    _check_addresses(path, nodes, config.dht_bootstrap + config.advertised)
    return config


def write_client_config(path: Path, config: ClientConfig) -> None:
    write_config(path, config)


def write_node_config(path: Path, config: NodeConfig) -> None:
    write_config(path, config)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, private to its owner; a crash leaves the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


C = TypeVar("C")


def load_config(path: Path, kind: type[C]) -> C:
    """A TOML file as the dataclass `kind`.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_FILE_BYTES_MAX + 1)
        if len(raw) > CONFIG_FILE_BYTES_MAX:
            raise ConfigError(f"{path}: larger than {CONFIG_FILE_BYTES_MAX} bytes")
        table = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return _convert(path, table, kind)


def _convert(path: Path, table: dict[str, Any], kind: type[C]) -> C:
    known = [field.name for field in dataclasses.fields(cast(Any, kind))]
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key[:64]!r}", hint="known keys: " + ", ".join(known), key=key[:64])
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigError(f"{path}: {key}: {what}" if key else f"{path}: {what}", key=key) from None


def _check_addresses(path: Path, nodes: tuple[str, ...], hosts: tuple[str, ...]) -> None:
    try:
        for text in nodes:
            parse_node_address(text)
        for text in hosts:
            parse_host_port(text)
    except InputError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def write_config(path: Path, config: Any) -> None:
    """Write a dataclass of numbers, texts and tuples of texts as TOML."""
    table = dataclasses.asdict(config)
    _convert(path, table, type(config))  # what is written can be read again
    write_atomic(path, "".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items()).encode())


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case tuple():
            return "[" + "".join(f"\n  {_toml_value(item)}," for item in value) + ("\n]" if value else "]")
        case _:
            return json.dumps(value)  # the patterns above allow no character that TOML and JSON escape differently
