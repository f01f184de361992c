"""The operators' API: users, agents, status."""
