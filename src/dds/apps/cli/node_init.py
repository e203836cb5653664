"""`dds node init`: make a node's key and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from dds.apps.cli.session import Session, command_hint, parse_size
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text

if TYPE_CHECKING:
    from dds.storage.home import Role


def init(
    session: Session,
    name: Annotated[str, typer.Option(help="A name for people and logs.")] = "node",
    network: Annotated[str | None, typer.Option(help="[default: that of config.toml]")] = None,
    role: Annotated[list[str] | None, typer.Option(help="What it does; may be given again. [default: ssn]")] = None,
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP; 0 takes a free one at the first start and keeps it.")] = 0,
    dht_port: Annotated[int, typer.Option(help="UDP; 0 as above.")] = 0,
    advertise: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="What others dial; may be given again.")
    ] = None,
    region: Annotated[str, typer.Option(help="Where it stands.")] = "local",
    operator: Annotated[str, typer.Option(help="Who runs it.")] = "local",
    subnet: Annotated[
        str | None,
        typer.Option(help="Which network it shares its fate with. [default: the /24 or /48 of its global address, else local]"),
    ] = None,
    capacity: Annotated[str, typer.Option(metavar="SIZE", help="Disk space it may use.")] = "20GiB",
    upload: Annotated[str, typer.Option(metavar="SIZE", help="Bytes a second it may send; 0: no limit.")] = "0",
    download: Annotated[str, typer.Option(metavar="SIZE", help="Bytes a second it may receive; 0: no limit.")] = "0",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory for bodies in flight.")] = "64MiB",
    lan: Annotated[bool, typer.Option("--lan/--no-lan", help="Be found, and find others, on the local network.")] = False,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(metavar="NODEID@HOST:PORT", help="Whom to ask first; may be given again. [default: as config.toml]"),
    ] = None,
    dht_bootstrap: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="May be given again. [default: as config.toml]")
    ] = None,
    nat: Annotated[
        Literal["off", "auto"], typer.Option(help="auto: ask the router, by NAT-PMP or UPnP, to pass the ports on.")
    ] = "off",
    iroh: Annotated[bool, typer.Option("--iroh", help="Be reached over iroh too, where nobody can dial this machine.")] = False,
    relay: Annotated[list[str] | None, typer.Option(metavar="URL", help="An iroh relay to meet at; at most two.")] = None,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="NODEID@HOST:PORT", help="The ledger that pays it; '' for none. [default: as config.toml]"),
    ] = None,
) -> None:
    """Make this home's node: its key and node.toml. Prints its NodeID."""
    from dds.storage.home import ClientConfig, NodeConfig, private_directory, write_node_config
    from dds.storage.keyfile import load_or_create_key

    home = session.open_home(create=True)
    node = home.node
    if node.config_file.exists():
        raise InputError(f"{node.config_file} exists already", hint="edit it, or choose another home")
    known = home.client_config() if home.config_file.exists() else ClientConfig(network or "")
    if not (network or known.network):
        raise InputError("which network is the node for?", hint="name it with --network, or connect this home first")
    roles = cast("tuple[Role, ...]", tuple(role or ("ssn",)))  # checked when it is written
    paid_by = known.ledger if set(roles) != {"origin"} else ""  # an origin serves its owner: nobody pays it
    config = NodeConfig(
        name=name,
        network=network or known.network,
        host=host,
        port=port,
        dht_port=dht_port,
        advertised=tuple(advertise or ()),
        roles=roles,
        region=region,
        operator=operator,
        subnet=subnet or _subnet(host, advertise or ()),
        capacity_bytes=parse_size(capacity),
        upload_bytes_per_s=parse_size(upload),
        download_bytes_per_s=parse_size(download),
        memory_bytes_max=parse_size(memory),
        lan=lan,
        bootstrap=tuple(bootstrap or known.bootstrap),
        dht_bootstrap=tuple(dht_bootstrap or known.dht_bootstrap),
        ledger=paid_by if ledger is None else ledger,
        nat=nat,
        iroh=iroh,
        iroh_relays=tuple(relay or ()),
    )
    private_directory(node.root)
    write_node_config(node.config_file, config)
    key = load_or_create_key(node.key_file)
    session.result({"id": key.public, "home": str(node.root), "config": str(node.config_file)}, id_text(key.public))
    session.say(f"start it with: {command_hint('node run', session)}")


def _subnet(host: str, advertised: Sequence[str]) -> str:
    """By the first address that says something of where the node stands."""
    from dds.placement.subnet import subnet_of
    from dds.storage.home import parse_host_port

    hosts = [*(parse_host_port(text)[0] for text in advertised), host]
    return next(filter(None, map(subnet_of, hosts)), "local")
