"""Typed ids, hashes, keys, errors: pure, and importing nothing of ours."""
