"""SQL files are split into statements where psql would split them."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.schema.statements import split
from scripts.scratch.postgres import Postgres

TRAPS = [
    "select ';'",
    "select 'it''s;', E'it\\'s;', e'\\\\', U&'\\0061;'",
    "select E'a'\n  ';\\';'",
    'select 1 as "a;""b;"',
    "select $$;$$, $a$ $$;$b$;' $a$, $_é1$;$_é1$",
    "select a$b$c from (values (1), (2)) as v (a$b$c)",
    "/* ; /* nested ' ; */ ; */ select 1 -- ; it's\n",
    "select 1 -- $$ ;\n + 1",
    "select (select 1)",
    "do $$ begin perform 1; end $$",
    "create or replace function pg_temp.a() returns int language sql begin atomic"
    " select 1; select case when true then 2 end; end",
    "create function pg_temp.b(x int default (1)) returns int language sql begin atomic; select 'end;'; select x; end",
    "CREATE PROCEDURE pg_temp.c() LANGUAGE sql BEGIN ATOMIC select 1; END",
    "create temporary table t (case_end int, atomic text default 'begin;')",
    "select - 1, 4 / 2, 4 * - 1",
]
WORDS = r"""select ; ( ) create function f begin atomic case end ' '' " E' \ \' $$ $a$ $ -- /* */ ; é a 1"""
PIECES = st.sampled_from([*WORDS.split(), " ", "\n", "\r\n"])


@pytest.mark.parametrize("statement", TRAPS)
def test_a_statement_is_never_cut(statement: str) -> None:
    assert [part.text for part in split(f"{statement};\n{statement}\n;")] == [statement.strip(), statement.strip()]


@given(st.lists(st.sampled_from(TRAPS), max_size=6))
def test_statements_in_any_order_are_split(statements: list[str]) -> None:
    assert [part.text for part in split(";".join(statements))] == [statement.strip() for statement in statements]


@given(st.lists(PIECES, max_size=40).map("".join) | st.text())
def test_the_parts_of_any_text_add_up_to_the_text(text: str) -> None:
    position = 0
    for part in split(text):
        assert text[position : part.offset].replace(";", "").strip() == ""
        assert text[part.offset : part.offset + len(part.text)] == part.text
        position = part.offset + len(part.text)
    assert text[position:].replace(";", "").strip() == ""


@settings(max_examples=30, deadline=None)
@given(st.permutations(TRAPS))
def test_the_server_accepts_every_part_as_exactly_one_statement(server: Postgres, statements: list[str]) -> None:
    with psycopg.connect(server.url()) as connection:
        for part in split(";".join(statements)):
            # The extended protocol rejects two statements in one call; half a statement is a syntax error.
            connection.execute(part.text.replace("%", "%%").encode(), [], binary=True)
        connection.rollback()


def test_comments_stay_with_their_statement_and_empty_statements_are_dropped() -> None:
    parts = list(split("-- why\nselect 1;;\n ; /* end */"))
    assert [(part.text, part.start, part.words) for part in parts] == [
        ("-- why\nselect 1", 7, ("select",)),
        ("/* end */", None, ()),
    ]


def test_line_ends_are_kept() -> None:
    assert [part.text for part in split("select\r\n1;\r\nselect 2;\r\n")] == ["select\r\n1", "select 2"]
