"""Fixtures from other folders that document tests use: databases with backups, and the service with its log."""

from tests.db.conftest import world, world_url  # noqa: F401
from tests.scripts.conftest import (  # noqa: F401
    backup,
    bare_server,
    bucket_vault,
    folder_vault,
    lasting_database,
    migrated_database,
    new_database,
    plain_backup,
    populated_database,
    source,
)
from tests.service.conftest import log, make_app, outside  # noqa: F401
