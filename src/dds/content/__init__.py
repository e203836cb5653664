"""Blocks and the DAGs they form: UnixFS, chunking, directories. Pure."""
