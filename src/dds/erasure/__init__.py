"""Stripes, Reed-Solomon, fragment trees, segments. Pure."""
