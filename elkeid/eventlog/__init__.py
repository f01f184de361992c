"""Append-only segments on local disk, named cursors and the ledger."""
