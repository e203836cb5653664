"""Sans-I/O machines: upload, download, discovery. Events in, effects out. Pure."""
