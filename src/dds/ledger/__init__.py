"""The ledger's rules: one pure, deterministic state machine (docs/spec/ledger.md)."""
