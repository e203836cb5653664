"""Bytes and wire messages between machines: TLS identity, HTTP client and server, DHT."""
