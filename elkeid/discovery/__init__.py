"""The registry of all instances, and the client every role uses."""
