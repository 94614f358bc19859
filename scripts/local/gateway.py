"""The local Supabase API URL: checks the API key, as hosted Supabase does, and forwards the request.

Realtime runs in the same process, which saves a hop for each event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import unquote_plus

import aiohttp
import jwt
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from scripts.errors import Failure
from scripts.local.realtime.protocol import MAX_FRAME_BYTES
from scripts.local.realtime.server import Realtime
from scripts.local.stack import Stack, containers_are_wanted

# The paths that are forwarded. The Data API serves both.
REST: Final = "/rest/v1"
ROUTES: Final = (REST, "/auth/v1")
TOKEN_SECONDS = 300
# Bytes of a request's first line, and of a header: Content-Location repeats the query. As in data_api/server.mjs.
MAX_LINE_BYTES = 128 * 1024
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailers", "transfer-encoding", "upgrade"}
HOP_BY_HOP |= {"proxy-authenticate", "proxy-authorization"}
# aiohttp would add these to a request that lacks them. With its Content-Type PostgREST looks for a bytea parameter.
AIOHTTP_DEFAULTS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
CORS = {
    "Access-Control-Allow-Origin": "*",
    # PostgREST's list. Retry-After is not in it: scripts of another origin cannot read that header.
    "Access-Control-Expose-Headers": "Content-Encoding, Content-Location, Content-Range, Content-Type, Date, "
    "Location, Server, Transfer-Encoding, Range-Unit",
}


class KeyRefused(Failure):
    """The request has no API key, or an invalid one."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.body = {"message": message, "hint": hint}


class Gateway:
    """Forwards requests to the Data API, with a short-lived token in place of the API key."""

    def __init__(self, stack: Stack) -> None:
        self._roles = {stack.secrets.publishable_key: "anon", stack.secrets.secret_key: "service_role"}
        self._jwt_secret = stack.secrets.jwt_secret
        self._upstream = f"http://127.0.0.1:{stack.ports.data_api}"
        # PostgREST serves at its root; the local Data API serves at Supabase's path.
        self._dropped = REST if containers_are_wanted() else ""
        self._tokens: dict[str, tuple[float, str]] = {}
        self._session: aiohttp.ClientSession  # while the application runs

    def application(self) -> web.Application:
        limits = {"max_line_size": MAX_LINE_BYTES, "max_field_size": MAX_LINE_BYTES}
        application = web.Application(client_max_size=MAX_FRAME_BYTES, handler_args=limits | {"auto_decompress": False})
        application.cleanup_ctx.append(self._lifetime)
        for path in ROUTES:
            application.router.add_route("*", path + "{rest:(/.*)?}", self.forward)
        return application

    async def forward(self, request: web.Request) -> web.StreamResponse:
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(headers=_preflight(request))
        try:
            authorization = self._authorization(request)
        except KeyRefused as refusal:
            return web.json_response(refusal.body, status=401, headers=CORS)
        try:
            return await self._stream(request, authorization)
        except aiohttp.ClientConnectionError:
            body = {"message": "The Data API does not answer", "hint": "See `ballast status`."}
            return web.json_response(body, status=503, headers=CORS)

    def _authorization(self, request: web.Request) -> str:
        """The Authorization header for the Data API: the caller's own token, or one for the API key's role."""
        key = request.headers.get("apikey") or request.query.get("apikey")
        if not key:
            raise KeyRefused("No API key found in request", "No `apikey` request header or url param was found.")
        role = self._roles.get(key)
        if role is None:
            raise KeyRefused("Invalid API key", "Double check your Supabase `anon` or `service_role` API key.")
        if role == "service_role" and request.headers.get("User-Agent", "").startswith("Mozilla/"):
            raise KeyRefused("Forbidden use of secret API key in browser", "Use the publishable key in a browser.")
        given = request.headers.get("Authorization")
        if given is None or given == f"Bearer {key}":
            return f"Bearer {self._token(role)}"
        return given

    def _token(self, role: str) -> str:
        """A token for the role of an API key. It is renewed when half of its lifetime is over."""
        now = time.time()
        made_at, token = self._tokens.get(role, (0.0, ""))
        if now - made_at > TOKEN_SECONDS / 2:
            claims = {"iss": "supabase", "role": role, "iat": int(now), "exp": int(now) + TOKEN_SECONDS}
            token = jwt.encode(claims, self._jwt_secret, algorithm="HS256")
            self._tokens[role] = (now, token)
        return token

    async def _stream(self, request: web.Request, authorization: str) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            URL(self._upstream + _without_api_key(request.raw_path.removeprefix(self._dropped)), encoded=True),
            headers=_forwarded_headers(request, authorization),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            headers = _end_to_end(answer.headers)
            headers.update(CORS)
            chunk = await answer.content.readany()
            if not chunk:  # aiohttp would give an empty stream a Content-Type
                return web.Response(status=answer.status, reason=answer.reason, headers=headers)
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
            await response.prepare(request)
            while chunk:
                await response.write(chunk)
                chunk = await answer.content.readany()
            await response.write_eof()
            return response

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=60),
            connector=aiohttp.TCPConnector(limit=0),
            skip_auto_headers=AIOHTTP_DEFAULTS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        ) as self._session:
            yield


def _without_api_key(target: str) -> str:
    """The target without the parameter `apikey`, which PostgREST would quote in errors. The rest is unchanged."""
    path, mark, query = target.partition("?")
    kept = [each for each in query.split("&") if unquote_plus(each.partition("=")[0]) != "apikey"]
    return path + mark + "&".join(kept) if kept else path


def _forwarded_headers(request: web.Request, authorization: str) -> CIMultiDict[str]:
    """The caller's headers with X-Forwarded-*, and without the API key, which the database must not see."""
    headers = _end_to_end(request.headers, "host", "apikey", "authorization")
    came_from = [request.headers.get("X-Forwarded-For"), request.remote]
    headers["X-Forwarded-For"] = ", ".join(filter(None, came_from))
    headers["X-Forwarded-Host"] = request.host
    headers["X-Forwarded-Proto"] = request.headers.get("X-Forwarded-Proto", "http")
    headers["Authorization"] = authorization
    return headers


def _end_to_end(headers: Mapping[str, str], *dropped: str) -> CIMultiDict[str]:
    """The headers that a proxy forwards, repeated ones included. `dropped` are further names in lower case to omit."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP | {*dropped})


def _preflight(request: web.Request) -> dict[str, str]:
    return CORS | {
        "Access-Control-Allow-Methods": "GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "authorization, apikey"),
        "Access-Control-Max-Age": "3600",
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    stack = Stack.from_environment()
    application = Gateway(stack).application()
    Realtime(stack).add_to(application)
    web.run_app(application, host="127.0.0.1", port=stack.ports.gateway, access_log=None, print=None)
