"""Fixtures of the Manager's tests."""

from .stores import any_database, any_url, empty_url

__all__ = ["any_database", "any_url", "empty_url"]
