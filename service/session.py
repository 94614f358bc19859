"""The caller's session, as the database grants it: profile, organizations and permissions. It is cached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from service.cache import Scopes
from service.components import components
from service.data_api import CallFailed, DataApi
from service.identity import Caller, TokenInvalid
from service.limits import RateLimited
from service.origin import origin_headers
from service.problems import DatabaseUnavailable, Problem

# PostgREST's error codes for a malformed, missing or expired token.
TOKEN_REFUSED = frozenset({"PGRST301", "PGRST302", "PGRST303", "PT401"})

# What public.start_session() returns: {profile, second_factor, organizations}.
Session = dict[str, Any]
KIND = "session:1"  # increment when the shape changes

# The database's own message may quote a row, so the caller gets these.
REFUSALS = {
    "23502": (400, "A value is missing."),
    "23503": (409, "A value refers to a row that does not exist, or the row is still referred to."),
    "23505": (409, "There is a row with this value."),
    "23514": (400, "A value is not allowed."),
    "22P02": (400, "A value is malformed."),
    "42501": (403, "You may not do this: a privilege or a policy forbids it."),
}
WITHOUT_ROLE = "The token's role is not `authenticated`: activate Clerk's Supabase integration."


class SessionRefused(Problem, status=403, slug="session-refused", title="The session is refused"):
    """The token is valid, but its owner is banned or deleted, or has not finished signing in."""


class WritesLimited(RateLimited, status=429, slug=RateLimited.slug, title=RateLimited.title):
    """A limit in the database refuses the person's write: app.check_request() or app.limit_audit_events()."""

    def __init__(self, message: str, hint: str) -> None:
        seconds = re.search(r"\d+", hint)
        retry_after = int(seconds[0]) if seconds else 1
        Problem.__init__(self, f"{message} {hint}".strip(), limit="writes", retry_after=retry_after)


class CallRefused(Problem, status=400, slug="call-refused", title="The database refuses the call"):
    """A function refused what the caller asked for. Its `status` is the function's: PT404 becomes 404."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)


def fetch_session(caller: Caller, *, refresh: bool = False) -> Session:
    """The caller's session, from the cache unless `refresh`. Raises what start_session() raises."""
    # Everything that the answer depends on apart from the database's rows.
    facts = (caller.user_id, caller.has_second_factor, caller.organization_id, caller.organization_role)
    return components().cache.fetch(
        KIND,
        facts,
        lambda: start_session(components().data_api, caller),
        lambda session: find_scopes(session, caller),
        refresh=refresh,
    )


def find_scopes(session: Session, caller: Caller) -> Scopes | None:
    """The person and the organizations that a session depends on. None means that it must not be cached.

    That is the case for a session of another caller, and while the token names an organization whose membership the
    database does not have yet: Clerk's webhook may arrive at any moment.
    """
    try:
        organizations = [each["clerk_org_id"] for each in session["organizations"]]
        is_theirs = session["profile"]["clerk_user_id"] == caller.user_id
        is_settled = caller.organization_id is None or caller.organization_id in organizations
        if is_theirs and is_settled and session["second_factor"] is caller.has_second_factor:
            return Scopes([caller.user_id], organizations)
    except (KeyError, TypeError):
        pass
    return None


def call_as_caller(caller: Caller, function: str, arguments: Mapping[str, Any]) -> object:
    """Calls a function of the API as the caller. Raises CallRefused and the problems of problem_from_database()."""
    try:
        return components().data_api.call_as(caller.token, function, arguments, origin_headers())
    except CallFailed as failure:
        if re.fullmatch(r"PT4(0[03469]|22)", failure.code):
            raise CallRefused(int(failure.code[2:]), f"{failure.message} {failure.hint}".strip()) from failure
        if failure.code in REFUSALS:
            raise CallRefused(*REFUSALS[failure.code]) from failure
        raise problem_from_database(failure) from failure


def start_session(data_api: DataApi, caller: Caller) -> Session:
    """The session as `public.start_session()` returns it. Raises the problems of problem_from_database()."""
    try:
        answer = data_api.call_as(caller.token, "start_session", {}, origin_headers())
    except CallFailed as failure:
        raise problem_from_database(failure) from failure
    if not isinstance(answer, dict):
        raise DatabaseUnavailable
    return answer


def problem_from_database(failure: CallFailed) -> Problem:
    """The problem that a caller gets when the database refuses a call made with their token."""
    if failure.code in TOKEN_REFUSED:
        return TokenInvalid(f"{failure.message} {failure.hint}".strip())
    if failure.code == "PT429":
        return WritesLimited(failure.message, failure.hint)
    if failure.code == "42501":
        return SessionRefused(WITHOUT_ROLE)
    if failure.code == "PT403":
        return SessionRefused(f"{failure.message} {failure.hint}".strip())
    return DatabaseUnavailable()
