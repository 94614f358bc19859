"""Ballast's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationInfo, field_validator

from service.clerk_api import CLERK_API_URL
from service.settings.fields import (
    GUARDED_ENVIRONMENTS,
    BackupUrl,
    ClerkKey,
    DatabaseUrl,
    EmailAddress,
    LongSecret,
    Origin,
    Origins,
    PublishableKey,
    Recipient,
    Release,
    ResendKey,
    SecretKey,
    SentryDsn,
    SettingsFile,
    WebhookSecret,
    WebhookSecrets,
    check_sender,
    split_list,
)

RESEND_API_URL = "https://api.resend.com"
# The operating company, as shown on the privacy page and the terms.
LEGAL_SETTINGS = ("legal_company", "legal_address", "legal_contact", "legal_effective_date")

Kind = TypeVar("Kind", bound=SettingsFile)


class Settings(SettingsFile):
    """Ballast's own settings, which `.env.example` explains."""

    _others: dict[type[SettingsFile], SettingsFile] = PrivateAttr(default_factory=dict)

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
    backup_recipients: Annotated[tuple[Recipient, ...], BeforeValidator(split_list)] = ()
    resend_api_key: ResendKey | None = None
    resend_webhook_secret: WebhookSecret | None = None
    resend_api_url: Origin = RESEND_API_URL
    mail_from: Annotated[str, AfterValidator(check_sender)] | None = None
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

    def of(self, kind: type[Kind]) -> Kind:
        """The settings of another module in this folder."""
        return cast("Kind", self._others[kind])

    def add(self, others: Mapping[type[SettingsFile], SettingsFile]) -> None:
        """Adds the settings of other modules, for of()."""
        self._others.update(others)

    def missing_for_backups(self) -> tuple[str, ...]:
        """Names the unset variables that the service needs to make backups."""
        needed = (
            "database_url",
            "backup_url",
            *(["backup_recipients"] if self.is_guarded else []),
        )
        return tuple(name.upper() for name in needed if not getattr(self, name))
