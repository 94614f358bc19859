"""The service's components: built once per process by `create_app`, shared by all threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import httpx
from flask import Flask, current_app
from upstash_redis import Redis

from service.audit_store import AuditStore
from service.backups import BackupRunner
from service.breaker import Breaker
from service.cache import Cache
from service.clerk_api import ClerkApi
from service.clerk_sample import ClerkSample
from service.data_api import DataApi
from service.erasure import Eraser
from service.erasure_ledger import LedgerStore
from service.identity import SessionTokens
from service.limits import Limits
from service.mail import DevMailbox, Mailer, Renderer, Resend
from service.privacy_notice import PrivacyNotice
from service.refusals import Refusals
from service.settings import Settings
from service.threads import Threads

REDIS_TIMEOUT = httpx.Timeout(2)
# A platform takes away an instance whose readiness check is late, which Redis alone must not cause.
REDIS_PROBE_TIMEOUT = httpx.Timeout(0.3)


@dataclass(frozen=True)
class Components:
    """The service's settings and its connections to the outside."""

    settings: Settings
    threads: Threads
    data_api: DataApi
    refusals: Refusals
    redis_probe: Redis
    cache: Cache
    limits: Limits
    session_tokens: SessionTokens
    clerk: ClerkApi
    eraser: Eraser
    audit_store: AuditStore | None
    backups: BackupRunner
    clerk_sample: ClerkSample
    mailer: Mailer
    privacy_notice: PrivacyNotice


def build_components(app: Flask, settings: Settings) -> Components:
    """Builds the components and stores them in `app`. Opens no connection yet."""
    data_api = DataApi(
        settings.supabase_url,
        settings.supabase_secret_key.get_secret_value(),
        settings.supabase_publishable_key.get_secret_value(),
    )
    clerk = ClerkApi(settings.clerk_api_url, settings.clerk_secret_key.get_secret_value())
    ledger = LedgerStore(settings.backup_url) if settings.backup_url else None
    audit_store = AuditStore(settings.backup_url) if settings.backup_url else None
    redis = _build_redis(settings, REDIS_TIMEOUT)
    breaker = Breaker(redis)
    cache = Cache(breaker, settings.supabase_url)
    built = Components(
        settings=settings,
        threads=Threads(),
        data_api=data_api,
        refusals=Refusals(data_api.call_briefly),
        redis_probe=_build_redis(settings, REDIS_PROBE_TIMEOUT),
        cache=cache,
        limits=Limits(breaker, redis, settings.supabase_url),
        session_tokens=SessionTokens(settings.clerk_issuer, settings.clerk_authorized_parties),
        clerk=clerk,
        eraser=Eraser(data_api.call, clerk, ledger, audit_store, lambda user_id: cache.invalidate(users=[user_id])),
        audit_store=audit_store,
        backups=BackupRunner(data_api.call, settings.missing_for_backups()),
        clerk_sample=_build_clerk_sample(settings),
        mailer=_build_mailer(settings, data_api),
        privacy_notice=PrivacyNotice(data_api.call),
    )
    app.extensions["ballast"] = built
    return built


def components() -> Components:
    """The components of the app that serves this request."""
    return cast("Components", current_app.extensions["ballast"])


def _build_clerk_sample(settings: Settings) -> ClerkSample:
    if settings.database_url is None:
        return ClerkSample({}, ("DATABASE_URL",))
    return ClerkSample(
        {
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "CLERK_SECRET_KEY": settings.clerk_secret_key.get_secret_value(),
            "CLERK_API_URL": settings.clerk_api_url,
        }
    )


def _build_mailer(settings: Settings, data_api: DataApi) -> Mailer:
    app_url = settings.clerk_authorized_parties[0] if settings.clerk_authorized_parties else None
    secret = settings.jobs_token.get_secret_value()
    renderer = Renderer(settings.legal_company, app_url, settings.service_url, secret)
    transport: Resend | DevMailbox | None = None
    if settings.environment == "local":
        transport = DevMailbox(settings.ballast_home / "mail" if settings.ballast_home else None)
    elif settings.resend_api_key is not None and settings.mail_from is not None:
        transport = Resend(settings.resend_api_key.get_secret_value(), settings.resend_api_url, settings.mail_from)
    elif settings.environment == "test":
        transport = DevMailbox(None)
    return Mailer(data_api.call, renderer, transport)


def _build_redis(settings: Settings, timeout: httpx.Timeout) -> Redis:
    token = settings.upstash_redis_rest_token.get_secret_value()
    redis = Redis(settings.upstash_redis_rest_url, token, rest_retries=0, allow_telemetry=False, read_your_writes=False)
    # The package has no timeout and no setting for one.
    redis._http._client.timeout = timeout
    return redis
