"""`dds`: the command line. Decides the order of commands and how a run ends; each command is a file beside this one.

Exit codes: exits.py. Nothing here or in a command's file imports a heavy library at its top: `dds --help` must answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from dds import __version__
from dds.apps.cli import (
    cid,
    contract,
    devnet,
    doctor,
    endow,
    exits,
    explain,
    get,
    ledger,
    ls,
    market,
    node,
    placement,
    policy,
    put,
    stake,
    stat,
    tier,
    version,
    wallet,
)
from dds.apps.cli.session import HomeOption, JsonOption, Session, VerboseOption

_EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 not found, 4 unavailable (too few nodes or fragments), "
    "5 integrity, 130 interrupted. Start here: dds devnet up; dds put DIR; dds get CONTENTID"
)


def build() -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        name="dds",
        help="Store files on a network of nodes that need not be trusted, and get them back, verified.",
        epilog=_EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for module in (cid, put, get, ls, stat, version, doctor, endow, explain):
        module.register(app)
    for group in (devnet, node, wallet, contract, stake, market, placement, ledger, policy, tier):
        app.add_typer(group.app())
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dds {__version__}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    home: HomeOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = Session(home, json, verbose)


def run(argv: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        the exit code.
    """
    as_json = "--json" in argv
    try:
        code = build()(args=list(argv), prog_name="dds", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else exits.OK
    except (KeyboardInterrupt, exits.Interrupted):
        return exits.tell("interrupted", code="interrupted", exit_code=exits.INTERRUPTED, as_json=as_json)
    except (BrokenPipeError, exits.ReaderGone):
        _drop_output()
        return exits.BROKEN_PIPE
    except typer.Abort:
        return exits.tell("stopped at your word", code="aborted", exit_code=exits.FAILED, as_json=as_json)
    except typer.TyperException as error:
        return _usage_error(error, as_json)
    except Exception as error:
        if exits.is_debugging():
            raise
        return exits.tell_error(error, as_json=as_json)


def _usage_error(error: typer.TyperException, as_json: bool) -> int:
    """A command line that does not parse: the message, and where its help is."""
    words = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "dds")
    if words.startswith("Usage:"):  # no command given: the words are its help
        print(words, file=sys.stderr)
        return exits.BAD_INPUT
    return exits.tell(words.rstrip("."), hint=f"see: {path} --help", code="usage", exit_code=exits.BAD_INPUT, as_json=as_json)


def _drop_output() -> None:
    """The reader has gone; the interpreter's own flush at exit must not complain about it."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The `dds` program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # foreign names may hold what the terminal's encoding lacks
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
