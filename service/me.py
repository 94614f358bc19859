"""The signed-in person's own view: profile, organizations and permissions, as the database grants them."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from service.data_api import CallFailed, DataApi
from service.identity import Caller, TokenInvalid
from service.parts import parts
from service.problems import Problem

me = Blueprint("me", __name__, url_prefix="/api/v1")

# PostgREST's own answers to a token it does not take: malformed, none, expired.
TOKEN_REFUSED = frozenset({"PGRST301", "PGRST302", "PGRST303", "PT401"})

WITHOUT_ROLE = "The token's role is not authenticated: activate Clerk's Supabase integration."


class SessionRefused(Problem):
    """The token is good, and its owner may not come in: banned, deleted or pending."""

    status = HTTPStatus.FORBIDDEN
    slug = "session-refused"
    title = "The session is refused"


class DatabaseUnavailable(Problem):
    """The database did not answer, or not as it should."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "database-unavailable"
    title = "The database does not answer"
    headers = {"Retry-After": "5"}  # noqa: RUF012 - never changed


@me.get("/me")
def show() -> ResponseReturnValue:
    """Who the caller is and what they may do where."""
    caller = parts().session_tokens.caller(request.headers.get("Authorization"))
    return jsonify(start_session(parts().data_api, caller))


def start_session(data_api: DataApi, caller: Caller) -> object:
    """The session as `public.start_session()` returns it. Raises TokenInvalid, SessionRefused, DatabaseUnavailable."""
    try:
        return data_api.call_as(caller.token, "start_session", {})
    except CallFailed as failure:
        raise refusal(failure) from failure


def refusal(failure: CallFailed) -> Problem:
    """What it means to the caller that the database, asked in their name, did not do it."""
    if failure.code in TOKEN_REFUSED:
        return TokenInvalid(failure.message)
    if failure.code == "42501":
        return SessionRefused(WITHOUT_ROLE)
    if failure.code == "PT403":
        return SessionRefused(f"{failure.message} {failure.hint}".strip())
    return DatabaseUnavailable("Try again in a few seconds.")
