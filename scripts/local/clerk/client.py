"""The client of the Clerk stand-in: issues tokens for its users, and completes events from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from scripts.errors import Failure
from scripts.local.stack import STAND_IN, Stack


class NotRunning(Failure):
    """A part of the stack does not answer."""


class Refused(Failure):
    """The stand-in refused the request. The message is its reason."""


class NoStandIn(Failure):
    """The stack uses a real Clerk instance. The message says what to do there instead."""


def require_stand_in(instead: str) -> None:
    """Raises NoStandIn if the stack's `.env` names a real instance. `instead` is a sentence about what to do there."""
    stack = Stack.from_environment()
    if stack.clerk != STAND_IN:
        raise NoStandIn(f"{stack.env_file} names the Clerk instance {stack.clerk}, so no stand-in runs. {instead}")


@dataclass(frozen=True)
class ClerkClient:
    """The stand-in at `issuer`, which is CLERK_ISSUER of a local environment."""

    issuer: str

    def token(self, user_id: str, organization_id: str | None = None, **options: Any) -> dict[str, Any]:
        """{"token", "claims"} of a new session; `options` are second_factor, lifetime and claims. Raises Refused."""
        return self._post("tokens", {"user_id": user_id, "organization_id": organization_id} | options)

    def event(self, event_type: str, data: dict[str, Any], **options: Any) -> dict[str, Any]:
        """{"message_id", "event"}: the complete event. It is applied to the directory, but not sent."""
        given = {name: value for name, value in options.items() if value is not None}
        return self._post("events", {"type": event_type, "data": data} | given)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = httpx.post(f"{self.issuer}/stand-in/{path}", json=body, timeout=120)
        except httpx.HTTPError:
            raise NotRunning(
                f"The Clerk stand-in does not answer at {self.issuer}: start it with `ballast up`."
            ) from None
        if answer.is_server_error:
            raise Refused(
                f"The Clerk stand-in failed with {answer.status_code}. Check the data; logs/clerk.log in the "
                "stack's folder has the error."
            )
        content: dict[str, Any] = answer.json()
        if not answer.is_success:
            raise Refused(content["errors"][0]["long_message"])
        return content
