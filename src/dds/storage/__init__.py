"""Bytes on this machine's disks: fragment store, catalog, key files, sources and sinks."""
