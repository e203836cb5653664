"""`dds version`."""

from __future__ import annotations

import platform
from typing import Final

import typer

from dds import __version__
from dds.apps.cli.session import Session, command

LIBRARIES: Final = ("aiohttp", "uvloop", "opendht", "pyeclib", "zstandard", "PyNaCl", "msgspec")


def register(app: typer.Typer) -> None:
    command(app)(version)


def version(session: Session) -> None:
    """Print the version; with --verbose also of Python and the libraries that matter."""
    libraries = {name: _installed(name) for name in LIBRARIES} if session.json or session.verbose else {}
    data = {"dds": __version__, "python": platform.python_version(), "platform": platform.platform(), "libraries": libraries}
    lines = [f"dds {__version__}"]
    if session.verbose:
        lines += [f"python {data['python']} on {data['platform']}", *(f"{name} {text}" for name, text in libraries.items())]
    session.result(data, "\n".join(lines))


def _installed(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
