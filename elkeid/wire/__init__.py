"""bytes <-> meaning: no I/O and no Twisted in here."""
