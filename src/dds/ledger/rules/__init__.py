"""One module a family of rules; `ledger/machine.py` lists them."""
