"""Health checks for the platform: is the process alive, and is the database reachable? Redis is only reported."""

from __future__ import annotations

from typing import Literal

import httpx
from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from upstash_redis import Redis

from service.components import components
from service.problems import Problem

health = Blueprint("health", __name__)

RedisState = Literal["up", "unreachable", "hanging", "invalid"]


class NotReady(Problem, status=503, slug="not-ready", title="The service is not ready", retry_after=5):
    """The database does not answer."""


@health.get("/healthz")
def alive() -> ResponseReturnValue:
    """Answers without contacting anything else. A deployment waits until the response names its release."""
    release = components().settings.release
    return jsonify({"status": "ok"} | ({"release": release} if release else {}))


@health.get("/readyz")
def ready() -> ResponseReturnValue:
    """Checks that the database answers. `down` names Redis too, which the service does not need."""
    is_ready, redis = components().data_api.ready(), read_redis_state(components().redis_probe)
    down = [name for name, is_up in (("data_api", is_ready), ("redis", redis == "up")) if not is_up]
    if not is_ready:
        raise NotReady(f"No answer from: {', '.join(down)}.", down=down, redis=redis)
    return jsonify(status="ok", down=down, redis=redis)


def read_redis_state(redis: Redis) -> RedisState:
    """Sends a PING. Redis hangs if it accepts the connection and does not answer within the timeout."""
    try:
        return "up" if redis.ping() == "PONG" else "invalid"
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return "unreachable"
    except httpx.TimeoutException:
        return "hanging"
    except Exception:  # the package does not validate answers: a malformed one may raise anything
        return "invalid"
