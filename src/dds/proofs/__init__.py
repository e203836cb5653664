"""Challenges, answers and evidence: what anyone can verify (docs/spec/proofs.md)."""
