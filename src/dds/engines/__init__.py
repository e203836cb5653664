"""The ledger's rules on an order of transactions: embedded, NATS JetStream, CometBFT (docs/operate/)."""
