"""Fixtures for all tests."""

from tests.postgres import ledger_place, postgres_server

__all__ = ["ledger_place", "postgres_server"]
