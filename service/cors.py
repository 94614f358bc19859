"""CORS: pages of the origins in CLERK_AUTHORIZED_PARTIES, whose sessions the API accepts, may call it."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Flask, Response, request

API = "/api/"
METHODS = "GET, POST, PUT, PATCH, DELETE"
# Apart from those that browsers always allow, such as Accept.
SENDABLE_HEADERS = "Authorization, Cache-Control, Content-Type, X-Request-Id"
READABLE_HEADERS = (
    "Content-Disposition, Location, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Request-Id"
)
# Browsers cache the answer to a preflight for at most two hours.
PREFLIGHT_SECONDS = 7200


def register(app: Flask, origins: Sequence[str]) -> None:
    """Answers preflights, and lets pages of `origins` read responses. Sessions are sent in a header, so no cookies."""

    def answer_preflight() -> Response | None:
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not is_preflight or not request.path.startswith(API) or request.headers.get("Origin") not in origins:
            return None
        response = Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = METHODS
        response.headers["Access-Control-Allow-Headers"] = SENDABLE_HEADERS
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response

    def allow(response: Response) -> Response:
        if request.path.startswith(API) and origins:
            response.vary.add("Origin")
            if (origin := request.headers.get("Origin")) in origins:
                response.headers["Access-Control-Allow-Origin"] = origin
                response.headers["Access-Control-Expose-Headers"] = READABLE_HEADERS
        return response

    app.before_request(answer_preflight)
    app.after_request(allow)
