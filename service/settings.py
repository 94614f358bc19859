"""The service's settings, read from the environment. A mistake stops the start with one line that names it."""

from __future__ import annotations

import base64
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.clerk_api import CLERK_API_URL

RESEND_API_URL = "https://api.resend.com"
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
# The operating company, as shown on the privacy page and the terms.
LEGAL_SETTINGS = ("legal_company", "legal_address", "legal_contact", "legal_effective_date")

Text = TypeVar("Text", str, SecretStr)


class SettingsInvalid(Exception):
    """One line naming each variable that is missing or malformed, never its value."""


def _split_list(text: object) -> object:
    return tuple(item.strip() for item in text.split(",") if item.strip()) if isinstance(text, str) else text


def _must_match(pattern: str | re.Pattern[str], example: str) -> AfterValidator:
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


def _require_one(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets:
        raise ValueError("must contain at least one signing secret")
    return secrets


def _parse_page_origin(text: str) -> str:
    if PAGE_ORIGIN.fullmatch(text.rstrip("/")) is None:
        raise ValueError("must be origins like https://app.example, without a path, separated by commas")
    return text.rstrip("/")


def _check_sender(text: str) -> str:
    name, _, address = text.rpartition("<")
    if not ADDRESS.fullmatch(address.removesuffix(">")) or not name.isprintable() or bool(name) != text.endswith(">"):
        raise ValueError(
            "must be an e-mail address, or a name and an address: Your Product <hello@your-domain.example>"
        )
    return text


# Supabase's keys used to be JWTs without a prefix: those still work on older projects.
PublishableKey = Annotated[
    SecretStr, _must_match(r"(sb_publishable_|eyJ)(?s:.*)", "a Supabase API key that starts with sb_publishable_")
]
SecretKey = Annotated[
    SecretStr, _must_match(r"(sb_secret_|eyJ)(?s:.*)", "a Supabase API key that starts with sb_secret_")
]
LongSecret = Annotated[SecretStr, _must_match(r"(?s:.{32,})", "a random text of at least 32 characters")]
ClerkKey = Annotated[SecretStr, _must_match(CLERK_KEY, "a Clerk secret key that starts with sk_live_ or sk_test_")]
ResendKey = Annotated[SecretStr, _must_match(r"re_[!-~]+", "a Resend API key that starts with re_")]
EmailAddress = Annotated[str, _must_match(r"[^@\s]+@[^@\s]+\.[^@\s]+", "an e-mail address")]
BackupUrl = Annotated[str, _must_match(BACKUP_PLACE, "a backup location like s3://bucket/prefix or file:///folder")]
DatabaseUrl = Annotated[
    SecretStr,
    _must_match(
        r"postgres(ql)?://(([^@/%\s]|%[0-9A-Fa-f]{2})*@)?[^@\s]*",
        "a URL like postgresql://user:password@host:5432/postgres, with special characters in the password encoded: "
        "% as %25, @ as %40, / as %2F",
    ),
]
SentryDsn = Annotated[
    SecretStr,
    _must_match(
        r"https?://[A-Za-z0-9]+@[A-Za-z0-9.:-]+(/[A-Za-z0-9/-]*)?/[0-9]+",
        "a DSN as Sentry shows it: https://key@host/project",
    ),
]
Release = Annotated[
    str, _must_match(r"[A-Za-z0-9][A-Za-z0-9.@+_-]{0,199}", "a version, such as 1.4.0 or a commit hash")
]
Origin = Annotated[str, AfterValidator(_parse_origin)]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_parse_page_origin)], ...], NoDecode, BeforeValidator(_split_list)
]
# Public keys as age-keygen prints them. The private key is never given to the service.
Recipient = Annotated[str, _must_match(r"age1[0-9a-z]{58}", "age's public keys (age1…), separated by commas")]
WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secret)]
WebhookSecrets = Annotated[
    tuple[WebhookSecret, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_require_one)
]


class Settings(BaseSettings):
    """Each variable is its field's name in capitals; `.env.example` explains it. An empty value counts as missing."""

    model_config = SettingsConfigDict(
        frozen=True, env_ignore_empty=True, str_strip_whitespace=True, validate_default=True
    )

    environment: Literal["local", "test", "staging", "production"]
    supabase_url: Origin
    supabase_publishable_key: PublishableKey
    supabase_secret_key: SecretKey
    clerk_issuer: Origin
    clerk_webhook_secrets: WebhookSecrets
    clerk_authorized_parties: Origins = ()
    clerk_secret_key: ClerkKey
    clerk_api_url: Origin = CLERK_API_URL
    jobs_token: LongSecret
    upstash_redis_rest_url: Origin
    upstash_redis_rest_token: SecretStr
    trusted_proxies: Annotated[int, Field(ge=0, le=9)] = 0
    operator_token: LongSecret | None = None
    database_url: DatabaseUrl | None = None
    backup_url: BackupUrl | None = None
    backup_recipients: Annotated[tuple[Recipient, ...], NoDecode, BeforeValidator(_split_list)] = ()
    resend_api_key: ResendKey | None = None
    resend_webhook_secret: WebhookSecret | None = None
    resend_api_url: Origin = RESEND_API_URL
    mail_from: Annotated[str, AfterValidator(_check_sender)] | None = None
    service_url: Origin | None = None
    ballast_home: Path | None = None
    metrics_token: LongSecret | None = None
    sentry_dsn: SentryDsn | None = None
    sentry_traces_sample_rate: Annotated[float, Field(ge=0, le=1)] = 0
    release: Release | None = None
    legal_company: str | None = None
    legal_address: str | None = None
    legal_contact: EmailAddress | None = None
    legal_effective_date: date | None = None

    @field_validator("supabase_url", "clerk_issuer", "clerk_api_url", "upstash_redis_rest_url")
    @classmethod
    def _require_https(cls, url: str, info: ValidationInfo) -> str:
        if info.data.get("environment") in GUARDED_ENVIRONMENTS and not url.startswith("https://"):
            raise ValueError("must use https outside local and test")
        return url

    @field_validator(*LEGAL_SETTINGS, mode="after", check_fields=False)
    @classmethod
    def _require_in_production(cls, value: object, info: ValidationInfo) -> object:
        if not value and info.data.get("environment") == "production":
            raise ValueError("is missing")
        return value

    @field_validator("backup_recipients")
    @classmethod
    def _require_recipients(cls, keys: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        makes_backups = info.data.get("backup_url") and info.data.get("database_url")
        if makes_backups and not keys and info.data.get("environment") in GUARDED_ENVIRONMENTS:
            raise ValueError("is missing: backups outside local and test must be encrypted")
        return keys

    @field_validator("resend_api_url", "service_url")
    @classmethod
    def _require_https_if_set(cls, url: str | None, info: ValidationInfo) -> str | None:
        return url if url is None else cls._require_https(url, info)

    @field_validator("mail_from", "service_url")
    @classmethod
    def _require_for_mail(cls, value: str | None, info: ValidationInfo) -> str | None:
        if not value and info.data.get("resend_api_key") and info.data.get("environment") != "local":
            raise ValueError("is missing: mail needs it once RESEND_API_KEY is set")
        return value

    def missing_for_backups(self) -> tuple[str, ...]:
        """Names the unset variables that the service needs to make backups."""
        needed = (
            "database_url",
            "backup_url",
            *(["backup_recipients"] if self.environment in GUARDED_ENVIRONMENTS else []),
        )
        return tuple(name.upper() for name in needed if not getattr(self, name))


def load() -> Settings:
    """Reads the environment. Raises SettingsInvalid."""
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        mistakes = list_mistakes(error)
    # Raised outside the except block: pydantic's error holds the values, and a chained traceback would print them.
    raise SettingsInvalid(f"The service cannot start: {mistakes}. See .env.example.")


def list_mistakes(error: ValidationError) -> str:
    """Each variable and what is wrong with it, never its value."""
    mistakes = error.errors(include_input=False)
    wrong = {str(item["loc"][0]).upper(): _describe_mistake(item["type"], item["msg"]) for item in mistakes}
    return "; ".join(f"{name} {reason}" for name, reason in wrong.items())


def _describe_mistake(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
