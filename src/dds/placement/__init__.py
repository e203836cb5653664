"""Choosing nodes: candidates, constraints, seed -> assignment and explanation. Pure."""
