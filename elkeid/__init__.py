"""The open back end for host security agents, on Twisted."""

__version__ = "0.1.0"
