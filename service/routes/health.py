"""Two questions of the platform: is the process alive, and could it do its work now?"""

from __future__ import annotations

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from upstash_redis import Redis

from service.components import components
from service.problems import Problem

health = Blueprint("health", __name__)


class NotReady(Problem, status=503, slug="not-ready", title="The service is not ready", retry_after=5):
    """A part that the service needs does not answer."""


@health.get("/healthz")
def alive() -> ResponseReturnValue:
    """The process answers, and says which release it is, for a deployment that waits for it. Asks nobody else."""
    release = components().settings.release
    return jsonify({"status": "ok"} | ({"release": release} if release else {}))


@health.get("/readyz")
def ready() -> ResponseReturnValue:
    """The database and Redis answer too."""
    answers = {"data_api": components().data_api.ready(), "redis": redis_answers(components().redis)}
    down = [name for name, answered in answers.items() if not answered]
    if down:
        raise NotReady(f"No answer from: {', '.join(down)}.", down=down)
    return jsonify(status="ok")


def redis_answers(redis: Redis) -> bool:
    """Whether Redis answers a PING within two seconds."""
    try:
        return redis.ping() == "PONG"
    except Exception:  # the package trusts the form of an answer, and raises whatever it stumbles over
        return False
