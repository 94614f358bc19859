"""The filters of Postgres Changes: `column=operator.value`, separated by commas."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

OPERATORS: Final = {
    "eq": "=", "neq": "!=", "lt": "<", "lte": "<=", "gt": ">", "gte": ">=",
    "like": "~~", "ilike": "~~*", "match": "~", "imatch": "~*", "in": "in", "is": "is", "isdistinct": "isdistinct",
}  # fmt: skip
MAX_LENGTH: Final = 4096
MAX_IN_VALUES: Final = 100
CONDITION: Final = re.compile(r"([^=]+)=(not\.)?([a-z]+)\.(.*)", re.DOTALL)
# A comma separates conditions, unless it is in parentheses or quotes.
PART: Final = re.compile(r'(?:\([^)]*\)|"(?:\\.|[^"\\])*"|[^,])+')
IN_VALUE: Final = re.compile(r'"(?:\\.|[^"\\])*"|[^,]+')
TRUTHS: Final = ("null", "true", "false", "unknown")


class FilterInvalid(Exception):
    """A filter cannot be parsed; str() is the message for the client."""


class Filter(NamedTuple):
    """One condition, as realtime.passes() expects it: `operator` is an SQL operator, or in, is or isdistinct."""

    column: str
    operator: str
    value: str
    negated: bool


def parse(text: object) -> list[Filter]:
    """The conditions of a filter. Raises FilterInvalid."""
    if not isinstance(text, str):
        return []
    if len(text) > MAX_LENGTH:
        raise FilterInvalid(f"Error parsing `filter` params: at most {MAX_LENGTH} characters")
    return [_condition(part.strip()) for part in PART.findall(text)]


def _condition(part: str) -> Filter:
    match = CONDITION.fullmatch(part)
    if match is None or match[3] not in OPERATORS:
        raise FilterInvalid(f'Error parsing `filter` params: ["{part}"]')
    column, negated, name, value = match.groups()
    return Filter(column.strip(), OPERATORS[name], _value(name, value), bool(negated))


def _value(operator: str, value: str) -> str:
    if operator == "in":
        if not (value.startswith("(") and value.endswith(")")):
            raise FilterInvalid("Error parsing `filter` params: `in` filter value must be wrapped by parentheses")
        if len(IN_VALUE.findall(value[1:-1])) > MAX_IN_VALUES:
            raise FilterInvalid(f"too many values for `in` filter. Maximum {MAX_IN_VALUES}")
        return f"{{{value[1:-1]}}}"
    if operator == "is" and value not in TRUTHS:
        raise FilterInvalid("invalid value for is filter: must be null, true, false, or unknown")
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
