"""What every command shares: the options --home, --json and --verbose, before or after the command's name, and its output.

Results go to standard output and nothing else does: lines for people, or with --json one JSON object a line. Messages and
progress go to standard error. Heavy libraries are imported where they are needed, so that `dds --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dds.apps.cli import exits
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import ConfigError, InputError
from dds.primitives.ids import ID_BYTES, id_text
from dds.primitives.units import CID_BYTES

if TYPE_CHECKING:
    from dds.runtime.client import Client
    from dds.runtime.results import Progress
    from dds.storage.home import Home

HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Home directory [default: $DDS_HOME or ~/.dds]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on standard error.")]
T = TypeVar("T")

CONNECT_HINT = "start a local one with 'dds devnet up', or give the home of one with --home or DDS_HOME"


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a command."""

    home: Path | None = None
    json: bool = False
    verbose: bool = False

    def open_home(self, *, create: bool = False) -> Home:
        """
        Raises:
            ConfigError: not to be used, or not there and not to be created.
        """
        from dds.storage.home import Home, home_path

        path = home_path(self.home)
        if not create and not path.exists():
            raise ConfigError(f"{path} is not connected to a network: there is no such directory", hint=CONNECT_HINT)
        return Home.open(path)

    def result(self, data: object, text: str) -> None:
        """Print a result: `data` for machines, `text` for people."""
        print(json.dumps(plain(data)) if self.json else text, flush=True)

    def say(self, text: str) -> None:
        """A message for people; a machine has it in its JSON."""
        if not self.json:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            self.say(text)


def plain(value: object) -> object:
    """A JSON-ready form of results: dataclasses and the wire's structs become objects, identifiers their text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if (names := getattr(value, "__struct_fields__", None)) and not isinstance(value, type):  # without importing msgspec
        return {name: plain(getattr(value, name)) for name in names}
    match value:
        case bytes() if len(value) == CID_BYTES:
            return cid_text(CID(value))
        case bytes() if len(value) == ID_BYTES:
            return id_text(value)
        case bytes():
            return value.hex()
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def fields(result: object) -> dict[str, object]:
    """A result dataclass or record as a JSON-ready object."""
    made = plain(result)
    assert isinstance(made, dict)
    return made


def printable(name: str) -> str:
    """A foreign name without what could steer a terminal; bytes that are not UTF-8 show as `\\xff`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def command(app: typer.Typer, name: str | None = None, *, hidden: bool = False) -> Callable[[Callable[..., None]], None]:
    """Register `run(session, ...)` as a command: its own parameters as typer reads them, and the common options."""

    def register(run: Callable[..., None]) -> None:
        def invoke(ctx: typer.Context, home: Path | None, json: bool, verbose: bool, **values: Any) -> None:
            outer: Session = ctx.find_root().obj or Session()
            try:
                run(Session(home or outer.home, json or outer.json, verbose or outer.verbose), **values)
            except KeyboardInterrupt:  # both would be dealt with by typer, in its own way
                raise exits.Interrupted from None
            except BrokenPipeError:
                raise exits.ReaderGone from None

        own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in (context, *own, *_common_parameters())]
        invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        invoke.__doc__ = run.__doc__
        app.command(name or run.__name__, hidden=hidden)(invoke)

    return register


def group(name: str, help_text: str) -> typer.Typer:
    """A group of commands, which takes the common options too."""
    made = typer.Typer(name=name, help=help_text, no_args_is_help=True, rich_markup_mode=None)

    def callback(ctx: typer.Context, home: HomeOption = None, json: JsonOption = False, verbose: VerboseOption = False) -> None:
        root = ctx.find_root()
        outer: Session = root.obj or Session()
        root.obj = Session(home or outer.home, json or outer.json, verbose or outer.verbose)

    made.callback()(callback)
    return made


def _common(home: HomeOption = None, json: JsonOption = False, verbose: VerboseOption = False) -> None: ...


def _common_parameters() -> list[inspect.Parameter]:
    return list(inspect.signature(_common, eval_str=True).parameters.values())


def show_log(*, verbose: bool) -> None:
    """With --verbose, what the parts log goes to standard error; else an operation's result says what matters of it."""
    import logging

    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler() if verbose else logging.NullHandler())
        root.setLevel(logging.INFO)


def run_async(work: Coroutine[Any, Any, T], *, verbose: bool = False) -> T:
    """Run a coroutine to its end; SIGINT and SIGTERM cancel it, so that its clean-up is done before the process ends."""
    import asyncio

    import uvloop

    show_log(verbose=verbose)
    terminated = False

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def on_terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_terminate)
        return await work

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(cancellable())
    except asyncio.CancelledError:
        if not terminated:
            raise
        raise typer.Exit(exits.TERMINATED) from None


def with_client(
    session: Session, use: Callable[[Client], Coroutine[Any, Any, T]], *, region: str | None = None, grant: bytes = b""
) -> T:
    """Open the home's client for one command, in `region` instead of the configured one; `grant`: a sponsor's, for reading."""
    home = session.open_home()
    home.client_config()  # fails with its hint before anything heavy is imported
    from dds.runtime.client import open_client

    async def work() -> T:
        async with open_client(home, region=region, grant=grant) as client:
            return await use(client)

    return run_async(work(), verbose=session.verbose)


@contextmanager
def progress_on(session: Session) -> Iterator[Callable[[Progress], None]]:
    """Where an operation reports its progress: a bar when standard error is a terminal, else nothing."""
    if session.json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from dds.apps.cli.bar import ProgressBar

    with ProgressBar() as bar:
        yield bar.show


def command_hint(words: str, session: Session) -> str:
    """A command for this home, to be shown to a person."""
    return f"dds {words}" + (f" --home {shlex.quote(str(session.home))}" if session.home is not None else "")


def parse_size(text: str) -> int:
    """`20GiB`, `20G`, `512MiB`, `1000` -> bytes; units are powers of 1024.

    Raises:
        InputError: not a size.
    """
    bare = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = {"k": 1, "m": 2, "g": 3, "t": 4}.get(bare[-1:], 0)
    digits = bare[:-1] if unit else bare
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise InputError(f"not a size: {text[:40]!r}", hint="for example 20GiB, 512MiB or a number of bytes")
    return int(digits) << (10 * unit)
