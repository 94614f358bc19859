"""A client for the parts of Clerk's Backend API that we need: delete and rename users, invite and remove members.

It does not retry. Work that must happen is a row in Postgres, and the job that reads it retries. In the other cases a
person waits for the answer and can try again.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import quote

import httpx

CLERK_API_URL = "https://api.clerk.com"
API_VERSION = "2025-11-10"  # https://clerk.com/docs/upgrade-guides/overview
TIMEOUT = httpx.Timeout(connect=2, read=8, write=2, pool=2)
# With these Clerk rejects the request's content. Other statuses, such as for a wrong key or URL, are our own mistakes.
REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
NOT_FOUND = "resource_not_found"
CODE = re.compile(r"[a-z0-9_]{1,100}")
SECONDS = re.compile(r"[0-9]{1,9}")


class ClerkCallFailed(Exception):
    """A call got no answer, or one that is not 2xx. str(), which appears in logs, names no person and no secret.

    `code` is Clerk's own ("clerk_key_invalid"), else the HTTP status, else the transport error ("ReadTimeout").
    `status` is None if there was no answer. `retry_after`: seconds, if Clerk names them.
    """

    def __init__(self, call: str, code: str, status: int | None = None, retry_after: int | None = None) -> None:
        super().__init__(f"{call}: {code}")
        self.code = code
        self.status = status
        self.retry_after = retry_after

    @property
    def is_refusal(self) -> bool:
        """Whether the same call would always fail."""
        return self.status in REFUSALS


class ClerkApi:
    """One per process: all threads share its connections."""

    def __init__(self, url: str, secret_key: str) -> None:
        headers = {"Authorization": f"Bearer {secret_key}", "Clerk-API-Version": API_VERSION}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)

    def delete_user(self, user_id: str) -> None:
        """Deletes the account. An account that does not exist is not an error. Raises ClerkCallFailed."""
        self._call("delete_user", "DELETE", _user_path(user_id))

    def rename_user(self, user_id: str, first_name: str | None, last_name: str | None) -> bool:
        """Sets the names; None or "" removes one. False if the account does not exist. Raises ClerkCallFailed."""
        names = {"first_name": first_name, "last_name": last_name}
        return self._call("rename_user", "PATCH", _user_path(user_id), names) is not None

    def invite(self, organization_id: str, email: str, role: str, inviter_id: str) -> str:
        """Sends an invitation on behalf of a member and returns its id. `role` is Clerk's key. Raises ClerkCallFailed.

        Clerk allows 250 an hour: https://clerk.com/docs/reference/backend/organization/create-organization-invitation
        """
        body = {"email_address": email, "role": role, "inviter_user_id": inviter_id}
        answer = self._call("invite", "POST", f"/v1/organizations/{_quote_segment(organization_id)}/invitations", body)
        if answer is None:
            raise ClerkCallFailed("invite", NOT_FOUND, HTTPStatus.NOT_FOUND)
        try:
            return str(answer.json()["id"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ClerkCallFailed("invite", "answer_unreadable", answer.status_code) from None

    def delete_membership(self, organization_id: str, user_id: str) -> None:
        """Deletes a membership. A membership that does not exist is not an error. Raises ClerkCallFailed."""
        path = f"/v1/organizations/{_quote_segment(organization_id)}/memberships/{_quote_segment(user_id)}"
        self._call("delete_membership", "DELETE", path)

    def _call(
        self, call: str, method: str, path: str, body: dict[str, str] | dict[str, str | None] | None = None
    ) -> httpx.Response | None:
        """Clerk's answer; None if the path names something that does not exist. Raises ClerkCallFailed."""
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            failed = ClerkCallFailed(call, type(error).__name__)
        else:
            if answer.is_success:
                return answer
            code = _read_code(answer)
            # A proxy or a wrong URL can answer 404 too: only Clerk's own 404 means that the person is gone.
            if answer.status_code == HTTPStatus.NOT_FOUND and code == NOT_FOUND:
                return None
            failed = ClerkCallFailed(call, code, answer.status_code, _read_retry_after(answer))
        # Raised outside the except block: httpx's error holds the request, with its key and the person's id.
        raise failed


def _user_path(user_id: str) -> str:
    return f"/v1/users/{_quote_segment(user_id)}"


def _quote_segment(clerk_id: str) -> str:
    # Dots are quoted too: the id ".." would name the parent folder.
    return quote(clerk_id, safe="").replace(".", "%2E")


def _read_code(answer: httpx.Response) -> str:
    try:
        code = answer.json()["errors"][0]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        code = None
    return code if isinstance(code, str) and CODE.fullmatch(code) else str(answer.status_code)


def _read_retry_after(answer: httpx.Response) -> int | None:
    given = answer.headers.get("Retry-After", "")
    return int(given) if SECONDS.fullmatch(given) else None
