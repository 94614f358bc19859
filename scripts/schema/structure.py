"""Records what each file creates, changes or drops, so that ops.structure_health reports what someone changes by hand.

The database compares: functions/7_service/structure.sql. Before that file is applied, nothing is recorded; with it,
everything that exists.
"""

from __future__ import annotations

from typing import LiteralString

from scripts.schema.database import Connection

# Sent after a file, in its transaction, with what list_changes() returned in the setting. Without it everything that
# differs is recorded.
RECORD: LiteralString = """\
do $ballast$
begin
  if to_regprocedure('app.record_structure(jsonb)') is not null then
    perform app.record_structure(coalesce(nullif(current_setting('ballast.known', true), ''), '[]')::jsonb);
  end if;
end;
$ballast$"""
SET_KNOWN: LiteralString = "select set_config('ballast.known', %s, true)"


def list_changes(connection: Connection) -> str:
    """Lists, as JSON, what someone changed by hand before the first file: no file's record includes it."""
    if connection.execute("select to_regprocedure('app.list_structure_changes()')").fetchone() == (None,):
        return "[]"
    [[known]] = connection.execute(
        "select coalesce(jsonb_agg(jsonb_build_array(kind, name, hash)), '[]')::text from app.list_structure_changes()"
    ).fetchall()
    return str(known)
