"""The only definition of every message and record: canonical bytes and limits. Pure."""
