"""The types of the settings: each checks its text, and its message never contains the value."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# One address and nothing else: no list, no display name.
ADDRESS = re.compile(r"[^@\s,;:<>()\[\]\\\"]+@[^@\s,;:<>()\[\]\\\"]+\.[^@\s,;:<>()\[\]\\\"]+")
CLERK_KEY = re.compile(r"sk_(test|live)_[!-~]+")
# A URL has no user or password: AWS's own variables hold the credentials.
BACKUP_PLACE = re.compile(r"((s3|gs|az)://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|file:///)[A-Za-z0-9._~%+=/-]*")
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
# What a browser sends as Origin. Extensions and native shells use other schemes than http and https.
PAGE_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+")
# Environments with real people's data.
GUARDED_ENVIRONMENTS = frozenset({"staging", "production"})

Text = TypeVar("Text", str, SecretStr)


def split_list(text: object) -> object:
    return tuple(item.strip() for item in text.split(",") if item.strip()) if isinstance(text, str) else text


def must_match(pattern: str | re.Pattern[str], example: str) -> AfterValidator:
    """Requires the whole text to match `pattern`; the error says that it must be `example`."""

    def check(value: Text) -> Text:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"must be {example}")
        return value

    return AfterValidator(check)


def _parse_origin(text: str) -> str:
    if ORIGIN.fullmatch(text.rstrip("/")) is None:
        raise ValueError("must be a URL like https://name.example, without a path")
    return text.rstrip("/")


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    prefix, _, key = secret.get_secret_value().partition("_")
    try:
        size = len(base64.b64decode(key + "=" * (-len(key) % 4), validate=True))
    except ValueError:
        size = 0
    if prefix != "whsec" or not 16 <= size <= 64:
        raise ValueError("must be signing secrets as Clerk shows them (whsec_…), separated by commas")
    return secret


def require_one(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets:
        raise ValueError("must contain at least one signing secret")
    return secrets


def _parse_page_origin(text: str) -> str:
    if PAGE_ORIGIN.fullmatch(text.rstrip("/")) is None:
        raise ValueError("must be origins like https://app.example, without a path, separated by commas")
    return text.rstrip("/")


def check_sender(text: str) -> str:
    name, _, address = text.rpartition("<")
    if not ADDRESS.fullmatch(address.removesuffix(">")) or not name.isprintable() or bool(name) != text.endswith(">"):
        raise ValueError(
            "must be an e-mail address, or a name and an address: Your Product <hello@your-domain.example>"
        )
    return text


# Supabase's keys used to be JWTs without a prefix: those still work on older projects.
PublishableKey = Annotated[
    SecretStr, must_match(r"(sb_publishable_|eyJ)(?s:.*)", "a Supabase API key that starts with sb_publishable_")
]
SecretKey = Annotated[
    SecretStr, must_match(r"(sb_secret_|eyJ)(?s:.*)", "a Supabase API key that starts with sb_secret_")
]
LongSecret = Annotated[SecretStr, must_match(r"(?s:.{32,})", "a random text of at least 32 characters")]
ClerkKey = Annotated[SecretStr, must_match(CLERK_KEY, "a Clerk secret key that starts with sk_live_ or sk_test_")]
ResendKey = Annotated[SecretStr, must_match(r"re_[!-~]+", "a Resend API key that starts with re_")]
EmailAddress = Annotated[str, must_match(r"[^@\s]+@[^@\s]+\.[^@\s]+", "an e-mail address")]
BackupUrl = Annotated[str, must_match(BACKUP_PLACE, "a backup location like s3://bucket/prefix or file:///folder")]
DatabaseUrl = Annotated[
    SecretStr,
    must_match(
        r"postgres(ql)?://(([^@/%\s]|%[0-9A-Fa-f]{2})*@)?[^@\s]*",
        "a URL like postgresql://user:password@host:5432/postgres, with special characters in the password encoded: "
        "% as %25, @ as %40, / as %2F",
    ),
]
SentryDsn = Annotated[
    SecretStr,
    must_match(
        r"https?://[A-Za-z0-9]+@[A-Za-z0-9.:-]+(/[A-Za-z0-9/-]*)?/[0-9]+",
        "a DSN as Sentry shows it: https://key@host/project",
    ),
]
Release = Annotated[str, must_match(r"[A-Za-z0-9][A-Za-z0-9.@+_-]{0,199}", "a version, such as 1.4.0 or a commit hash")]
Origin = Annotated[str, AfterValidator(_parse_origin)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_parse_page_origin)], ...], BeforeValidator(split_list)]
# Public keys as age-keygen prints them. The private key is never given to the service.
Recipient = Annotated[str, must_match(r"age1[0-9a-z]{58}", "age's public keys (age1…), separated by commas")]
WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secret)]
WebhookSecrets = Annotated[tuple[WebhookSecret, ...], BeforeValidator(split_list), AfterValidator(require_one)]


class SettingsFile(BaseSettings):
    """The settings of one module in this folder: each variable is its field's name in capitals. Empty means missing."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,
        str_strip_whitespace=True,
        validate_default=True,
        enable_decoding=False,  # a list is not JSON: split_list() reads it
        hide_input_in_errors=True,
    )

    environment: Literal["local", "test", "staging", "production"]

    @property
    def is_guarded(self) -> bool:
        """Whether the environment has real people's data."""
        return self.environment in GUARDED_ENVIRONMENTS
