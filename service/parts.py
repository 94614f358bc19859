"""What the routes work with: made once per process by `create_app`, shared by all threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import httpx
from flask import Flask, current_app
from upstash_redis import Redis

from service.data_api import DataApi
from service.identity import SessionTokens
from service.settings import Settings

REDIS_TIMEOUT = httpx.Timeout(2)


@dataclass(frozen=True)
class Parts:
    """The service's settings and its connections to the outside."""

    settings: Settings
    data_api: DataApi
    redis: Redis
    session_tokens: SessionTokens


def assemble(app: Flask, settings: Settings) -> None:
    """Makes the parts and keeps them with `app`. Connects to nothing yet."""
    app.extensions["ballast"] = Parts(
        settings=settings,
        data_api=DataApi(settings),
        redis=_redis(settings),
        session_tokens=SessionTokens(settings.clerk_issuer, settings.clerk_authorized_parties),
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
