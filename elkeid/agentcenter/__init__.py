"""The gateway that holds the agents' connections."""
