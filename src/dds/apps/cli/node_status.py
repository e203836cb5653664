"""`dds node status`: whether this home's node runs, and what it says of itself."""

from __future__ import annotations

from typing import Any

import typer

from dds.apps.cli import exits
from dds.apps.cli.node_home import load
from dds.apps.cli.session import Session, command_hint, printable, run_async
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import human_bytes


def status(session: Session) -> None:
    """Show whether this home's node runs, and what it says of itself. Ends with 4 when it does not serve."""
    from dds.runtime import processes
    from dds.storage.keyfile import load_or_create_key

    node, config = load(session)
    key = load_or_create_key(node.key_file)
    process = processes.find([node.root]).get(node.root)
    state = node.read_state()
    data: dict[str, Any] = {
        "name": config.name,
        "id": id_text(key.public),
        "network": config.network,
        "roles": config.roles,
        "pid": process.pid if process else None,
        "state": "stopped",
        "address": state.address if state and process else "",
    }
    if process and state and state.pid == process.pid:
        data |= _ask(config.network, NodeID(key.public), state.address)
    elif process:
        data["state"] = "starting"
    jobs = _jobs(session, config.network) if "origin" in config.roles and data["state"] == "running" else []
    lines = [f"{name:<10} {_text(value)}" for name, value in data.items() if value not in (None, "")]
    lines += [f"{'job':<10} {_job_text(job)}" for job in jobs]
    if "origin" in config.roles:
        data["jobs"] = jobs
    session.result(data, "\n".join(lines))
    if data["state"] != "running":
        session.say(f"start it with: {command_hint('node run', session)}" if process is None else "it does not serve")
        raise typer.Exit(exits.UNAVAILABLE)


def _ask(network: str, node: NodeID, address: str) -> dict[str, object]:
    from dds.apps.cli.peer import health_of
    from dds.storage.home import parse_host_port

    said = run_async(health_of(network, [(node, *parse_host_port(address))]))[0]
    if isinstance(said, DDSError):
        return {"state": "silent", "problem": said.message}
    return {"state": "running" if said.get("ready") else "starting", "health": said}


def _jobs(session: Session, network: str) -> list[dict[str, Any]]:
    """What the origin daemon has taken over, as it tells its own home."""
    import msgspec

    from dds.runtime.origin_client import OriginClient
    from dds.transport.client import PeerClient

    home = session.open_home()

    async def ask() -> list[dict[str, Any]]:
        async with PeerClient(home.identity(), network=network) as client:
            return [msgspec.structs.asdict(job) for job in await OriginClient(home, client).jobs()]

    try:
        return run_async(ask())
    except DDSError as error:
        session.say(f"its jobs cannot be shown: {error.message}")
        return []


def _job_text(job: dict[str, Any]) -> str:
    content = cid_text(CID(job["content"])) if job["content"] else "(not read yet)"
    size = human_bytes(job["content_bytes"] or job["done_bytes"])
    safe = ", safe to leave alone" if job["is_enough"] and job["state"] != "done" else ""
    why = f": {job['error']}" if job["error"] else ""
    return f"{job['job']} {job['state']}{safe} {content} {printable(job['name'])} ({size}){why}"


def _text(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
        case list() | tuple():
            return ", ".join(map(_text, value))
        case _:
            return str(value)
