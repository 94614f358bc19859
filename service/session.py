"""The caller's session, as the database grants it: profile, organizations and permissions; kept in the cache."""

from __future__ import annotations

from typing import Any

from service.cache import Scopes
from service.components import components
from service.data_api import CallFailed, DataApi
from service.identity import Caller, TokenInvalid
from service.problems import DatabaseUnavailable, Problem

# PostgREST's own answers to a token it does not take: malformed, none, expired.
TOKEN_REFUSED = frozenset({"PGRST301", "PGRST302", "PGRST303", "PT401"})

# What public.start_session() returns: {profile, second_factor, organizations}.
Session = dict[str, Any]
KIND = "session:1"  # another number for another shape

WITHOUT_ROLE = "The token's role is not authenticated: activate Clerk's Supabase integration."


class SessionRefused(Problem, status=403, slug="session-refused", title="The session is refused"):
    """The token is good, and its owner may not come in: banned, deleted or pending."""


class WritesLimited(Problem, status=429, slug="rate-limited", title="Too many requests", retry_after=1):
    """app.check_request() refuses the person's writes, and counts this call as one. It allows 20 in each second."""

    def __init__(self) -> None:
        super().__init__("Too many writes through the Data API. Try again in 1 s.", limit="writes")


def fetch_session(caller: Caller, *, refresh: bool = False) -> Session:
    """The caller's session, from the cache unless `refresh`. Raises what start_session() raises."""
    # All that the answer depends on besides the database's rows.
    facts = (caller.user_id, caller.has_second_factor, caller.organization_id, caller.organization_role)
    return components().cache.fetch(
        KIND,
        facts,
        lambda: start_session(components().data_api, caller),
        lambda session: find_scopes(session, caller),
        refresh=refresh,
    )


def find_scopes(session: Session, caller: Caller) -> Scopes | None:
    """What a session speaks of: the person and each organization. None for one that is not this caller's, or will not
    stay so: whose token knows of a membership that the database has yet to hear of.
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


def start_session(data_api: DataApi, caller: Caller) -> Session:
    """The session as `public.start_session()` returns it. Raises the problems of refusal()."""
    try:
        answer = data_api.call_as(caller.token, "start_session", {})
    except CallFailed as failure:
        raise problem_from_database(failure) from failure
    if not isinstance(answer, dict):
        raise DatabaseUnavailable
    return answer


def problem_from_database(failure: CallFailed) -> Problem:
    """What it means to the caller that the database, asked in their name, did not do it."""
    if failure.code in TOKEN_REFUSED:
        return TokenInvalid(failure.message)
    if failure.code == "PT429":
        return WritesLimited()
    if failure.code == "42501":
        return SessionRefused(WITHOUT_ROLE)
    if failure.code == "PT403":
        return SessionRefused(f"{failure.message} {failure.hint}".strip())
    return DatabaseUnavailable()
