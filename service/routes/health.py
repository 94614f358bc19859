"""Health checks for the platform: is the process alive, and are the database and Redis reachable?"""

from __future__ import annotations

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from upstash_redis import Redis

from service.components import components
from service.problems import Problem

health = Blueprint("health", __name__)


class NotReady(Problem, status=503, slug="not-ready", title="The service is not ready", retry_after=5):
    """The database or Redis does not answer."""


@health.get("/healthz")
def alive() -> ResponseReturnValue:
    """Answers without contacting anything else. A deployment waits until the response names its release."""
    release = components().settings.release
    return jsonify({"status": "ok"} | ({"release": release} if release else {}))


@health.get("/readyz")
def ready() -> ResponseReturnValue:
    """Checks that the database and Redis answer."""
    answers = {"data_api": components().data_api.ready(), "redis": redis_answers(components().redis)}
    down = [name for name, answered in answers.items() if not answered]
    if down:
        raise NotReady(f"No answer from: {', '.join(down)}.", down=down)
    return jsonify(status="ok")


def redis_answers(redis: Redis) -> bool:
    """Whether Redis answers a PING within two seconds."""
    try:
        return redis.ping() == "PONG"
    except Exception:  # the package does not validate answers: a malformed one may raise anything
        return False
