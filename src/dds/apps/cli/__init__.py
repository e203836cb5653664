"""The dds command: one file per command."""
