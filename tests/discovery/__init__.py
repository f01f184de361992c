"""Tests of ServiceDiscovery."""
