"""Splits an SQL file into statements where psql would: after each semicolon that ends a statement.

No library fits: sqlparse fails on nested comments and SQL-standard function bodies; pglast is GPL, and supports only
one server version. The rules are those of psql's scanner (src/fe_utils/psqlscan.l) with standard_conforming_strings on.

Example: `select ';'; create function f() returns int begin atomic select 1; select 2; end;` has two statements. The
semicolons in the string and between `begin` and `end` end no statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Text that cannot contain a statement's end is one token. An unterminated token extends to the end of the file; the
# server then reports the error.
_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\r\n]* )
    | (?P<block> /\* )
    | [eE] ' (?: [^'\\] | \\. | '' )* (?: ' (?: [^\S\n]* \n \s* ' (?: [^'\\] | \\. | '' )* ' )* | \Z )
    | ' [^']* (?: '' [^']* )* (?: ' | \Z )
    | " [^"]* (?: "" [^"]* )* (?: " | \Z )
    | \$ (?P<tag> (?: [^\W\d] \w* )? ) \$ .*? (?: \$ (?P=tag) \$ | \Z )
    | (?P<word> [^\W\d] [\w$]* )
    | (?P<mark> [();] )
    | (?P<space> \s+ )
    | \d+ | .
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")


@dataclass(frozen=True)
class Statement:
    """`text` without surrounding space and semicolon; `offset` is where it starts in the file, in characters.

    `words` are the first four words outside comments and quotes, in lower case: enough to recognize its kind.
    `start` is the offset of the first token that is not a comment; None if there are only comments.
    """

    text: str
    offset: int
    start: int | None
    words: tuple[str, ...]


def split(sql: str) -> Iterator[Statement]:
    """Yields a file's statements in order, as the Supabase CLI records them: with comments, without empty ones."""
    begin, position = 0, 0
    while begin < len(sql):
        scan = _Scanner()
        position = scan.run(sql, begin)
        text = sql[begin:position].rstrip(";").strip()
        if text:
            offset = begin + len(sql[begin:position]) - len(sql[begin:position].lstrip())
            yield Statement(text, offset, scan.start, tuple(scan.words))
        begin = position


class _Scanner:
    """Scans one statement. Counts the open parentheses and the open `begin atomic … end` bodies."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.start: int | None = None
        self.parentheses = 0
        self.bodies = 0

    def run(self, sql: str, position: int) -> int:
        """Returns the position after the statement that starts at `position`, its semicolon included."""
        while position < len(sql):
            token = _TOKEN.match(sql, position)
            if token is None:  # unreachable: every character matches `.`
                raise AssertionError(position)
            position = token.end()
            if token["block"]:
                position = _end_of_comment(sql, position)
            elif token["comment"] is None and token["space"] is None:
                if token["mark"] == ";" and self.parentheses == 0 and self.bodies == 0:
                    return position
                if self.start is None:
                    self.start = token.start()
                self._update_depth(token["word"], token["mark"])
        return position

    def _update_depth(self, word: str | None, mark: str | None) -> None:
        if mark == "(":
            self.parentheses += 1
        elif mark == ")":
            self.parentheses = max(0, self.parentheses - 1)
        elif word is not None:
            if len(self.words) < 4:
                self.words.append(word.lower())
            if self.parentheses == 0 and self._creates_routine():
                self._count_bodies(word.lower())

    def _creates_routine(self) -> bool:
        words = [word for word in self.words if word not in ("or", "replace")]
        return words[:2] in (["create", "function"], ["create", "procedure"])

    def _count_bodies(self, word: str) -> None:
        if word == "begin" or (word == "case" and self.bodies):
            self.bodies += 1
        elif word == "end" and self.bodies:
            self.bodies -= 1


def _end_of_comment(sql: str, position: int) -> int:
    """Returns the end of the block comment that was opened before `position`. Block comments nest."""
    depth = 1
    for mark in _COMMENT_MARK.finditer(sql, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(sql)
