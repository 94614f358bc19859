"""The Clerk variables that `.env` sets for the local stack: a real development instance, and further origins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, ValidationError

from scripts.errors import Failure
from service.clerk_api import CLERK_API_URL
from service.settings import ClerkKey, Origin, Origins, WebhookSecrets, list_mistakes

PARTIES = "CLERK_AUTHORIZED_PARTIES"


class EnvFileInvalid(Failure):
    """`.env` cannot be read, or a variable is missing or malformed. The message has its name, never its value."""

    exit_code = 2


def _require_development_key(key: SecretStr) -> SecretStr:
    if key.get_secret_value().startswith("sk_live_"):
        raise ValueError(
            "must be the key of a development instance (sk_test_…): an erasure here deletes the person at Clerk"
        )
    return key


class FurtherOrigins(BaseModel):
    """The variables that may be set while the stand-in is used."""

    model_config = ConfigDict(alias_generator=str.upper, str_strip_whitespace=True)

    clerk_authorized_parties: Origins = ()


class RealInstance(FurtherOrigins):
    """The variables that select a real Clerk instance."""

    clerk_issuer: Origin
    clerk_secret_key: Annotated[ClerkKey, AfterValidator(_require_development_key)]
    clerk_webhook_secrets: WebhookSecrets
    clerk_api_url: Origin = CLERK_API_URL


def clerk_variables(file: Path, port_base: int, stand_in_url: Callable[[int], str]) -> dict[str, str]:
    """The Clerk variables of the file; CLERK_ISSUER is included only if it names a real instance.

    The URL of the stand-in does not count as a real instance, so `ballast env > .env` changes nothing. That file names
    its own BALLAST_PORT_BASE, which may differ from the stack's `port_base`. Raises EnvFileInvalid.
    """
    variables = _read(file)
    names = {name.upper() for name in RealInstance.model_fields}
    given = {name: value for name, value in variables.items() if name in names and value}
    bases = (str(port_base), variables.get("BALLAST_PORT_BASE") or "")
    if given.get("CLERK_ISSUER") in {stand_in_url(int(base)) for base in bases if base.isdecimal()}:
        given = {name: value for name, value in given.items() if name == PARTIES}
    model = RealInstance if given.keys() - {PARTIES} else FurtherOrigins
    try:
        settings = model.model_validate(given)
    except ValidationError as error:
        mistakes = list_mistakes(error)
    else:
        return {name.upper(): _text(value) for name, value in settings if value}
    # Outside the except block: pydantic's error holds the values, and a chained traceback would print them.
    raise EnvFileInvalid(
        f"{file} cannot be used: {mistakes}. docs/local-stack.md lists the variables of a Clerk instance."
    )


def _read(file: Path) -> dict[str, str | None]:
    try:
        return dotenv_values(file, interpolate=False)
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    # Outside the except block: the decoding error holds the whole file.
    raise EnvFileInvalid(f"{file} cannot be read: {reason}.")


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
