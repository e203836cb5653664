"""DDS (Distributed Data Stores): the decentralized, verifiable content store of EchoNet."""

__version__ = "0.1.0"
