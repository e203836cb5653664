"""The process around one node: `python -m dds.runtime.daemon --home ROOT`.

What `dds node run` becomes and what a devnet starts. It parses three options by hand and imports the node only then: a daemon
carries no command-line or terminal library. Exit codes: 0 stopped as asked, 1 failed, 2 bad usage or configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from dds.primitives.errors import ConfigError, DDSError, InputError
from dds.storage.home import NodeHome, load_node_config

READY_BYTE: Final = b"1"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dds.runtime.daemon", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True, help="the node's directory: node.toml, node.key, store/")
    parser.add_argument("--ready-fd", type=int, help="write one byte to this descriptor when the node serves")
    arguments = parser.parse_args(argv)
    return serve(arguments.home.absolute(), lambda: announce(arguments.ready_fd))


def serve(root: Path, ready: Callable[[], None]) -> int:
    """Run the node in `root` until SIGTERM or SIGINT."""
    try:
        config = load_node_config(NodeHome(root).config_file)
        os.chdir(root)  # hold no other directory open for as long as the node lives
        import asyncio

        import uvloop

        from dds.runtime.node import run_node
        from dds.transport.heap import keep_freed_memory

        keep_freed_memory()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_node(config, root, ready=ready))
    except DDSError as error:
        print(f"dds: {error.message}" + (f"; hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2 if isinstance(error, ConfigError | InputError) else 1
    return 0


def announce(descriptor: int | None) -> None:
    """Tell whoever started this process that it serves."""
    if descriptor is not None:
        with suppress(OSError):  # the starter has gone: nobody waits
            os.write(descriptor, READY_BYTE)
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
