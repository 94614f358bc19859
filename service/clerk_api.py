"""Clerk's Backend API, as much of it as we need: accounts are deleted and renamed there, people invited and removed.

Nothing is tried again here: what has to happen stands in a row of Postgres, and the job that reads it knows when; or a
person waits, and may ask again.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import quote

import httpx

CLERK_API_URL = "https://api.clerk.com"
API_VERSION = "2025-11-10"  # https://clerk.com/docs/upgrade-guides/overview
TIMEOUT = httpx.Timeout(connect=2, read=8, write=2, pool=2)
# By these Clerk says that it does not want what it was told. A wrong key or address is ours to mend.
REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
NOT_FOUND = "resource_not_found"
CODE = re.compile(r"[a-z0-9_]{1,100}")
SECONDS = re.compile(r"[0-9]{1,9}")


class ClerkCallFailed(Exception):
    """A call had no answer, or one that is not 2xx. str(), which ends in logs, names no person and no secret.

    `code` is Clerk's own ("clerk_key_invalid"), else the HTTP status, else what went wrong on the way ("ReadTimeout").
    `status` is None without an answer. `retry_after`: seconds, if Clerk names them.
    """

    def __init__(self, call: str, code: str, status: int | None = None, retry_after: int | None = None) -> None:
        super().__init__(f"{call}: {code}")
        self.code = code
        self.status = status
        self.retry_after = retry_after

    @property
    def is_refusal(self) -> bool:
        """Whether the same call would fail however often it is made."""
        return self.status in REFUSALS


class ClerkApi:
    """One per process: its connections are kept and shared by all threads."""

    def __init__(self, url: str, secret_key: str) -> None:
        headers = {"Authorization": f"Bearer {secret_key}", "Clerk-API-Version": API_VERSION}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)

    def delete_user(self, user_id: str) -> None:
        """Deletes the account. Returns when there is none, too. Raises ClerkCallFailed."""
        self._call("delete_user", "DELETE", _user(user_id))

    def rename_user(self, user_id: str, first_name: str | None, last_name: str | None) -> bool:
        """Sets the names; None or "" takes one away. False when there is no such account. Raises ClerkCallFailed."""
        names = {"first_name": first_name, "last_name": last_name}
        return self._call("rename_user", "PATCH", _user(user_id), names) is not None

    def invite(self, organization_id: str, email: str, role: str, inviter_id: str) -> str:
        """Sends an invitation in the name of a member, and returns its id. `role` is Clerk's. Raises ClerkCallFailed.

        Clerk takes 250 an hour: https://clerk.com/docs/reference/backend/organization/create-organization-invitation
        """
        body = {"email_address": email, "role": role, "inviter_user_id": inviter_id}
        answer = self._call("invite", "POST", f"/v1/organizations/{_segment(organization_id)}/invitations", body)
        if answer is None:
            raise ClerkCallFailed("invite", NOT_FOUND, HTTPStatus.NOT_FOUND)
        try:
            return str(answer.json()["id"])
        except (ValueError, LookupError, TypeError):
            raise ClerkCallFailed("invite", "answer_unreadable", answer.status_code) from None

    def delete_membership(self, organization_id: str, user_id: str) -> None:
        """Ends a membership. Returns when there is none, too. Raises ClerkCallFailed."""
        path = f"/v1/organizations/{_segment(organization_id)}/memberships/{_segment(user_id)}"
        self._call("delete_membership", "DELETE", path)

    def _call(
        self, call: str, method: str, path: str, body: dict[str, str] | dict[str, str | None] | None = None
    ) -> httpx.Response | None:
        """Clerk's answer; None when it does not know whom or what the path names. Raises ClerkCallFailed."""
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            failed = ClerkCallFailed(call, type(error).__name__)
        else:
            if answer.is_success:
                return answer
            code = _code(answer)
            # A proxy or a wrong address has 404s too: only Clerk's own means that the person is gone.
            if answer.status_code == HTTPStatus.NOT_FOUND and code == NOT_FOUND:
                return None
            failed = ClerkCallFailed(call, code, answer.status_code, _retry_after(answer))
        # Outside the except block: httpx's error holds the request, with its key and the person's id.
        raise failed


def _user(user_id: str) -> str:
    return f"/v1/users/{_segment(user_id)}"


def _segment(clerk_id: str) -> str:
    # Dots too: an id of two of them would name the folder above.
    return quote(clerk_id, safe="").replace(".", "%2E")


def _code(answer: httpx.Response) -> str:
    try:
        code = answer.json()["errors"][0]["code"]
    except (ValueError, LookupError, TypeError):
        code = None
    return code if isinstance(code, str) and CODE.fullmatch(code) else str(answer.status_code)


def _retry_after(answer: httpx.Response) -> int | None:
    given = answer.headers.get("Retry-After", "")
    return int(given) if SECONDS.fullmatch(given) else None
