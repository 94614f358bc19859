"""Fixtures with the databases that the tests of benchmarks copy."""

from tests.scripts.conftest import bare_server, lasting_database, migrated_database  # noqa: F401
