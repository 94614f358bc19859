"""Finds UPDATE and DELETE without WHERE in functions. Hosted Supabase refuses both in sessions of its API (safeupdate).

A lexer is enough, and reads SQL, PL/pgSQL and dynamic SQL in the same way: the statement needs a WHERE of its own, outside of
parentheses. So `update t set a = (select 1 where b)` is found, and `with gone as (delete from t where a) select 1` is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlfluff.core import FluffConfig, Lexer

LEXER = Lexer(config=FluffConfig(overrides={"dialect": "postgres"}))
WRITE = re.compile(r"\b(update|delete)\b", re.IGNORECASE)
# UPDATE is no statement in `for update`, `for no key update`, `after insert or update of a`, `on update cascade`,
# `grant select, update on t`, `do update set` and MERGE's `then update set`.
NEVER_BEFORE_UPDATE = {"for", "key", "or", "before", "after", "of", "on", "grant", "revoke", ","}
NEVER_AFTER_UPDATE = {"of", "on", "set", ",", ")", ";"}
# PL/pgSQL's `for each in delete … returning * loop` has no semicolon.
ENDS = {";", "loop"}
STRING = re.compile(r"[^'$]*(?:'(?P<quoted>.*)'|\$\w*\$(?P<dollared>.*)\$\w*\$)", re.DOTALL)
DYNAMIC_SQL = re.compile(r"\s*(update|delete|with|insert|merge)\b", re.IGNORECASE)
PLACEHOLDER = re.compile(r"%(\d+\$)?[sIL]")


def find_unfiltered_writes(text: str) -> list[str]:
    """The statements in SQL or PL/pgSQL that change every row of a table; also in strings that begin as SQL does."""
    if not WRITE.search(text):
        return []
    tokens = [each.raw for each in LEXER.lex(text)[0] if each.is_code and each.raw]
    words = [";", *(token.lower() for token in tokens), ";"]
    found = []
    for at, (before, word, after) in enumerate(zip(words, words[1:], words[2:], strict=False)):
        is_update = word == "update" and before not in NEVER_BEFORE_UPDATE and after not in NEVER_AFTER_UPDATE
        if is_update or (word, after) == ("delete", "from"):
            statement = list(_statement(tokens[at:]))
            if not any(token.lower() == "where" and depth == 0 for token, depth in statement):
                found.append(" ".join(token for token, _ in statement))
    return found + [write for sql in _dynamic_sql(tokens) for write in find_unfiltered_writes(sql)]


def _statement(tokens: list[str]) -> Iterator[tuple[str, int]]:
    """The tokens up to the statement's end, each with the number of parentheses around it."""
    depth = 0
    for token in tokens:
        depth -= token == ")"
        if depth < 0 or (depth == 0 and token.lower() in ENDS):
            return
        yield token, depth
        depth += token == "("


def _dynamic_sql(tokens: list[str]) -> Iterator[str]:
    """The strings that begin as SQL does, with a name in place of each placeholder of format()."""
    for string in filter(None, map(STRING.fullmatch, tokens)):
        content = (string["quoted"] or string["dollared"] or "").replace("''", "'")
        if DYNAMIC_SQL.match(content):
            yield PLACEHOLDER.sub("placeholder", content)
