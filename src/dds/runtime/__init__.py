"""Asyncio hosts that perform the machines' effects: client, node, devnet."""
