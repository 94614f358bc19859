"""What the routes work with: made once per process by `create_app`, shared by all threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import httpx
from flask import Flask, current_app
from upstash_redis import Redis

from service.backups import BackupRunner
from service.clerk_api import ClerkApi
from service.data_api import DataApi
from service.erasure import Eraser
from service.erasure_ledger import LedgerStore
from service.identity import SessionTokens
from service.privacy_notice import PrivacyNotice
from service.settings import Settings

REDIS_TIMEOUT = httpx.Timeout(2)


@dataclass(frozen=True)
class Parts:
    """The service's settings and its connections to the outside."""

    settings: Settings
    data_api: DataApi
    redis: Redis
    session_tokens: SessionTokens
    clerk: ClerkApi
    eraser: Eraser
    backups: BackupRunner
    privacy_notice: PrivacyNotice


def assemble(app: Flask, settings: Settings) -> None:
    """Makes the parts and keeps them with `app`. Connects to nothing yet."""
    data_api = DataApi(
        settings.supabase_url,
        settings.supabase_secret_key.get_secret_value(),
        settings.supabase_publishable_key.get_secret_value(),
    )
    clerk = ClerkApi(settings.clerk_api_url, settings.clerk_secret_key.get_secret_value())
    ledger = LedgerStore(settings.backup_url) if settings.backup_url else None
    app.extensions["ballast"] = Parts(
        settings=settings,
        data_api=data_api,
        redis=_redis(settings),
        session_tokens=SessionTokens(settings.clerk_issuer, settings.clerk_authorized_parties),
        clerk=clerk,
        eraser=Eraser(data_api.call, clerk, ledger),
        backups=BackupRunner(data_api.call, settings.missing_for_backups()),
        privacy_notice=PrivacyNotice(data_api.call),
    )


def parts() -> Parts:
    """The parts of the app that serves this request."""
    return cast("Parts", current_app.extensions["ballast"])


def _redis(settings: Settings) -> Redis:
    token = settings.upstash_redis_rest_token.get_secret_value()
    redis = Redis(settings.upstash_redis_rest_url, token, rest_retries=0, allow_telemetry=False, read_your_writes=False)
    # The package waits for ever and offers no setting for it.
    redis._http._client.timeout = REDIS_TIMEOUT
    return redis
