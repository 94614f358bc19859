"""Supabase's Data API (PostgREST): calls functions as the service role, or as the person who owns the token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from postgrest import APIError, SyncPostgrestClient

# Their sum is below the 15 s after which Svix counts a delivery as failed.
TIMEOUT = httpx.Timeout(connect=2, read=8, write=2, pool=2)
PROBE_TIMEOUT = httpx.Timeout(2)


class NotTheDataApi(httpx.HTTPError):
    """Something else answered, such as a proxy's page. PostgREST's client would return its text as data."""


def _require_json(response: httpx.Response) -> None:
    if response.is_success and response.headers.get("Content-Length") != "0" and response.status_code != NO_CONTENT:
        content_type = response.headers.get("Content-Type", "")
        if "json" not in content_type:
            raise NotTheDataApi("the answer is not JSON")


# The type of DataApi.call: (function, arguments) -> answer. Tests and commands pass their own.
Call = Callable[[str, dict[str, Any]], Any]

NO_CONTENT = 204
# A number in a jsonb column may have 131,072 digits before its decimal point, and users write such columns. Python
# refuses to read an integer of more than 4,300 digits.
sys.set_int_max_str_digits(200_000)
EVENT_HOOKS = {"response": [_require_json]}


class CallFailed(Exception):
    """A call got no answer, or one that is not 2xx.

    `code` is a SQLSTATE, PostgREST's own code, the HTTP status, or the transport error ("ConnectTimeout").
    `message` and `hint` come from the database. They may quote data, so str(), which appears in logs, omits them.
    """

    def __init__(self, function: str, code: str, message: str = "", hint: str = "") -> None:
        super().__init__(f"{function}: {code}")
        self.code = code
        self.message = message
        self.hint = hint


class DataApi:
    """One per process: all threads share its connections. Only call_as() needs the publishable key."""

    def __init__(self, supabase_url: str, secret_key: str, publishable_key: str = "") -> None:
        self._url = f"{supabase_url}/rest/v1"
        self._secret_key = secret_key
        self._publishable_key = publishable_key
        self._http = httpx.Client(timeout=TIMEOUT, event_hooks=EVENT_HOOKS)
        self._service = self._postgrest(secret_key, secret_key, self._http, {})
        self._probe = self._postgrest(
            secret_key, secret_key, httpx.Client(timeout=PROBE_TIMEOUT, event_hooks=EVENT_HOOKS), {}
        )

    def call(self, function: str, arguments: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> object:
        """Calls `function` as the service role and returns its JSON. Raises CallFailed.

        `origin` are the headers of a person's request on whose behalf this is: see origin_headers().
        """
        if origin is None:
            return _call(self._service, function, arguments)
        return _call(self._postgrest(self._secret_key, self._secret_key, self._http, origin), function, arguments)

    def call_briefly(self, function: str, arguments: Mapping[str, Any]) -> object:
        """Like call(), but waits for at most two seconds: after a call that used up most of a request's time."""
        return _call(self._probe, function, arguments)

    def call_as(
        self, token: str, function: str, arguments: Mapping[str, Any], origin: Mapping[str, str] | None = None
    ) -> object:
        """Calls `function` as the person who owns the session token. `origin` as in call(). Raises CallFailed."""
        # A separate client on the shared connections: another thread must never see this caller's headers.
        return _call(self._postgrest(self._publishable_key, token, self._http, origin or {}), function, arguments)

    def ready(self) -> bool:
        """Whether the database answers a query through the Data API within two seconds."""
        try:
            return _call(self._probe, "ready", {}) is True
        except CallFailed:
            return False

    def _postgrest(
        self, api_key: str, token: str, http: httpx.Client, origin: Mapping[str, str]
    ) -> SyncPostgrestClient:
        headers = {**origin, "apikey": api_key, "Authorization": f"Bearer {token}"}
        return SyncPostgrestClient(self._url, headers=headers, http_client=http)


def _call(postgrest: SyncPostgrestClient, function: str, arguments: Mapping[str, Any]) -> object:
    try:
        return postgrest.rpc(function, dict(arguments)).execute().data
    except APIError as error:
        failed = CallFailed(function, error.code or "no code", error.message or "", error.hint or "")
    except httpx.HTTPError as error:
        failed = CallFailed(function, type(error).__name__)
    raise failed
