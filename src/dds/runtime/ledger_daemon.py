"""The process around one ledger host: `python -m dds.runtime.ledger_daemon --home ROOT`.

Decides the order of starting and stopping, and when the host counts as ready: then state.json is written and the starter told.
Exit codes: 0 stopped as asked, 1 failed, 2 bad usage or configuration.
Source: docs/operate/ledger-embedded.md.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from dds import __version__
from dds.primitives.errors import ConfigError, DDSError, InputError
from dds.primitives.ids import id_text
from dds.runtime.daemon import announce
from dds.runtime.ledger_engines import open_engine
from dds.runtime.ledger_host import LedgerHost
from dds.runtime.logs import event, log_to_file, stop_logging
from dds.runtime.signals import stop_requests
from dds.storage.home import private_directory
from dds.storage.keyfile import load_or_create_key
from dds.storage.ledger_home import LedgerHome, LedgerState
from dds.wire.discovery import format_address

_log: Final = logging.getLogger("dds.ledger")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dds.runtime.ledger_daemon", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True, help="the host's directory: ledger.toml, genesis.bin, ledger.key")
    parser.add_argument("--ready-fd", type=int, help="write one byte to this descriptor when the host serves")
    arguments = parser.parse_args(argv)
    return serve(arguments.home.absolute(), lambda: announce(arguments.ready_fd))


def serve(root: Path, ready: Callable[[], None]) -> int:
    """Run the host in `root` until SIGTERM or SIGINT."""
    try:
        home = LedgerHome(private_directory(root))
        home.config()
        os.chdir(root)  # hold no other directory open for as long as the host lives
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_ledger(home, ready=ready))
    except DDSError as error:
        print(f"dds: {error.message}" + (f"; hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2 if isinstance(error, ConfigError | InputError) else 1
    return 0


async def run_ledger(home: LedgerHome, *, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the process at once.

    Raises:
        ConfigError: a configuration, key, genesis, port or ledger that cannot be used.
        StorageError, UnavailableError: the disk failed, or the engine's other parts are not there.
    """
    log = log_to_file(home.log_file, home.config().log_level)
    try:
        with stop_requests() as asked:
            async with AsyncExitStack() as stack:
                host = await _start(home, stack)
                ready()
                await asked.wait()
                event(_log, logging.INFO, "stopping", host=id_text(host.node_id))
        event(_log, logging.INFO, "stopped")
    except BaseException as error:
        event(_log, logging.ERROR, "ledger failed", error=error)
        raise
    finally:
        stop_logging(log)


async def _start(home: LedgerHome, stack: AsyncExitStack) -> LedgerHost:
    config, genesis, key = home.config(), home.genesis(), load_or_create_key(home.key_file)
    engine = await asyncio.to_thread(open_engine, config, home.store_file, genesis, key)
    host = LedgerHost(key, engine, genesis)
    port = await host.start(stack, config.host, config.port)
    if port != config.port:  # chosen at the first start, kept from now on: others remember it
        home.write_config(replace(config, port=port))
    stack.callback(home.state_file.unlink, missing_ok=True)
    address = format_address(config.host, port)
    state = LedgerState(os.getpid(), id_text(host.node_id), address, genesis.network, engine.name, time.time_ns() // 1_000_000)
    home.write_state(state)
    event(_log, logging.INFO, "ready", host=state.id, address=address, engine=engine.name, version=__version__, pid=state.pid)
    return host


if __name__ == "__main__":
    sys.exit(main())
