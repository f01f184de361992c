"""Simulated agents: the load half of every feature."""
