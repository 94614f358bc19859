"""The errors of Clerk's Backend API that the stand-in returns: status, code and message as Clerk publishes them.

The index is https://clerk.com/docs/guides/development/errors/backend-api. It does not state which call answers with
which error. The docstring of a class states if this is a guess.
"""

from __future__ import annotations

from typing import Any

from scripts.errors import Failure


class ClerkRefusal(Failure):
    """A request that Clerk refuses. `meta` has details for programs, such as the parameter's name."""

    def __init__(self, status: int, code: str, message: str, long_message: str = "", **meta: object) -> None:
        super().__init__(long_message or message)
        self.status = status
        self.code = code
        self.headers: dict[str, str] = {}
        self._message = message
        self._meta = meta

    @property
    def error(self) -> dict[str, Any]:
        """The entry for the list `errors` of the response."""
        error = {"message": self._message, "long_message": str(self), "code": self.code}
        return error | ({"meta": self._meta} if self._meta else {})


class Unknown(ClerkRefusal):
    """Clerk has no such object. `meta` may name the parameter that has its id."""

    def __init__(self, long_message: str, **meta: object) -> None:
        super().__init__(404, "resource_not_found", "not found", long_message, **meta)


class RoleUnknown(Unknown):
    """The instance has no role with this key."""

    def __init__(self, key: str, known: list[str]) -> None:
        message = f"Organization role not found: {key}. The stand-in has {', '.join(known)}; role.created adds one."
        super().__init__(message, param_name="role")


class KeyMissing(ClerkRefusal):
    """The request has no bearer token."""

    def __init__(self) -> None:
        message = "Invalid Authorization header format"
        expected = f"{message}. Must be 'Bearer <YOUR_API_KEY>'; `ballast env` prints the key."
        super().__init__(401, "authorization_header_format_invalid", message, expected)


class KeyInvalid(ClerkRefusal):
    """The bearer token is not the instance's secret key."""

    def __init__(self) -> None:
        message = "The provided Clerk Secret Key is invalid. Make sure that your Clerk Secret Key is correct."
        super().__init__(401, "clerk_key_invalid", message)


class VersionInvalid(ClerkRefusal):
    """The API version does not exist. Clerk documents that it refuses the request, but not the code."""

    def __init__(self, version: str) -> None:
        super().__init__(400, "bad_request", "Bad request", f"Clerk-API-Version {version} does not exist.")


class TooManyRequests(ClerkRefusal):
    """A rate limit is reached. Clerk documents the status and Retry-After, but not the code."""

    def __init__(self, seconds: int) -> None:
        super().__init__(429, "too_many_requests", "Too many requests", f"Try again in {seconds} seconds.")
        self.headers = {"Retry-After": str(seconds)}


class BodyInvalid(ClerkRefusal):
    """The body is not a JSON object."""

    def __init__(self) -> None:
        message = "The request body is invalid. Please consult the API documentation for more information."
        super().__init__(400, "request_body_invalid", "Request body invalid", message)


class ParameterMissing(ClerkRefusal):
    """A required parameter is absent."""

    def __init__(self, name: str, long_message: str = "") -> None:
        message = long_message or f"{name} must be included."
        super().__init__(422, "form_param_missing", "is missing", message, param_name=name)


class ParameterUnknown(ClerkRefusal):
    """The call does not have the parameter. The stand-in also refuses Clerk parameters that it does not implement."""

    def __init__(self, name: str) -> None:
        message = f"{name} is not a valid parameter for this request."
        super().__init__(422, "form_param_unknown", "is unknown", message, param_name=name)


class ParameterTypeInvalid(ClerkRefusal):
    """A parameter has the wrong JSON type."""

    def __init__(self, name: str, expected: str) -> None:
        message = f"`{name}` must be a `{expected}`."
        super().__init__(422, "form_param_type_invalid", "is invalid", message, param_name=name)


class ParameterFormatInvalid(ClerkRefusal):
    """A parameter does not have the form that Clerk expects."""

    def __init__(self, name: str, expected: str) -> None:
        message = f"{name} must be {expected}."
        super().__init__(422, "form_param_format_invalid", "is invalid", message, param_name=name)


class ParameterValueInvalid(ClerkRefusal):
    """A parameter is not one of the allowed values."""

    def __init__(self, name: str, value: str, allowed: str) -> None:
        message = f"{value} does not match the allowed values for parameter {name}. Allowed values: {allowed}"
        super().__init__(422, "form_param_value_invalid", "is invalid", message, param_name=name)


class ParameterConflict(ClerkRefusal):
    """Two parameters exclude each other."""

    def __init__(self, name: str, other: str) -> None:
        message = f"`{name}` isn't allowed when `{other}` is present."
        super().__init__(422, "form_conditional_param_disallowed", "is not allowed", message, param_name=name)


class ResourceNotFound(ClerkRefusal):
    """A parameter names an object that does not exist."""

    def __init__(self, name: str) -> None:
        message = f"The resource associated with the supplied {name} was not found."
        super().__init__(422, "form_resource_not_found", "is missing", message, param_name=name)


class NotAnAdmin(ClerkRefusal):
    """The inviter may not manage members. Clerk documents the status; the code is from older documentation."""

    def __init__(self, user_id: str) -> None:
        message = f"{user_id} is not an administrator in the organization."
        super().__init__(403, "not_an_admin_in_organization", "not an administrator", message)


class AlreadyAMember(ClerkRefusal):
    """The invited address belongs to a member."""

    def __init__(self, email_address: str) -> None:
        message = f"{email_address} is already a member of the organization."
        super().__init__(400, "already_a_member_in_organization", "already a member", message)


class AlreadyInvited(ClerkRefusal):
    """The address has a pending invitation to the organization."""

    def __init__(self) -> None:
        message = "Organizations cannot have duplicate pending invitations for an email address."
        code = "organization_invitation_not_unique"
        super().__init__(400, code, "organization invitation not unique", message)


class NoSeatLeft(ClerkRefusal):
    """Members and pending invitations have reached the organization's `max_allowed_memberships`."""

    def __init__(self, limit: int) -> None:
        message = f"You have reached your limit of {limit} organization memberships, including outstanding invitations."
        code = "organization_membership_quota_exceeded"
        super().__init__(403, code, "organization membership quota exceeded", message)


class LastAdministrator(ClerkRefusal):
    """Without this member, no one could manage the organization. Clerk does not document which calls return it."""

    def __init__(self) -> None:
        message = "There has to be at least one organization member with the minimum required permissions"
        code = "organization_minimum_permissions_needed"
        super().__init__(400, code, "minimum organization permissions needed", message)
