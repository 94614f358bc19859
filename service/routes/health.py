"""Health checks for the platform: is the process alive, and is the database reachable? Redis is only reported."""

from __future__ import annotations

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from upstash_redis import Redis

from service.components import components
from service.problems import Problem

health = Blueprint("health", __name__)


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
    answers = {"data_api": components().data_api.ready(), "redis": redis_answers(components().redis_probe)}
    down = [name for name, answered in answers.items() if not answered]
    if not answers["data_api"]:
        raise NotReady(f"No answer from: {', '.join(down)}.", down=down)
    return jsonify(status="ok", down=down)


def redis_answers(redis: Redis) -> bool:
    """Whether Redis answers a PING in time."""
    try:
        return redis.ping() == "PONG"
    except Exception:  # the package does not validate answers: a malformed one may raise anything
        return False
