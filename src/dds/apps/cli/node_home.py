"""Which node the `dds node` commands mean: the home itself when it is laid out as a node's, else the node inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dds.apps.cli.session import Session
from dds.primitives.errors import ConfigError

if TYPE_CHECKING:
    from dds.storage.home import NodeConfig, NodeHome


def node_home(session: Session) -> NodeHome:
    """
    Raises:
        ConfigError: there is no node here.
    """
    from dds.storage.home import NodeHome

    home = session.open_home()
    for node in (NodeHome(home.root), home.node):
        if node.config_file.exists():
            return node
    raise ConfigError(f"there is no node in {home.root}", hint="make one: dds node init")


def load(session: Session) -> tuple[NodeHome, NodeConfig]:
    from dds.storage.home import load_node_config

    node = node_home(session)
    return node, load_node_config(node.config_file)
