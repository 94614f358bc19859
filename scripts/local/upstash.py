"""The Upstash REST protocol on top of a local redis-server, so that Upstash clients work unmodified.

POST / runs one command, /pipeline several, /multi-exec several in one transaction. A response is {"result": …} or
{"error": …}. The header `Upstash-Encoding: base64` asks for base64 strings (https://upstash.com/docs/redis/features/restapi).
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis.asyncio
from aiohttp import web
from redis.asyncio.connection import UnixDomainSocketConnection

from scripts.errors import Failure
from scripts.local.stack import REDIS_SOCKET, Stack

Command = list[str]
Reply = Any  # str, bytes, int, None, a list of these, or the redis.ResponseError of a failed command


class MalformedCommand(Failure):
    """The body is not a command: a list of at least one string or number."""


class UpstashRest:
    """Translates HTTP requests that have the token to Redis commands on a connection pool."""

    def __init__(self, token: str, socket: Path) -> None:
        self._authorization = f"Bearer {token}"
        self._pool = redis.asyncio.ConnectionPool(
            connection_class=UnixDomainSocketConnection, path=str(socket), protocol=2
        )

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._authorize], client_max_size=10 * 1024**2)
        application.router.add_post("/", self.one)
        application.router.add_post("/pipeline", self.pipeline)
        application.router.add_post("/multi-exec", self.multi_exec)
        return application

    async def one(self, request: web.Request) -> web.Response:
        [reply] = await self._run([_command(await request.json())])
        return _answer(_encode_reply(reply, request), failed=isinstance(reply, redis.ResponseError))

    async def pipeline(self, request: web.Request) -> web.Response:
        replies = await self._run(_commands(await request.json()))
        return _answer([_encode_reply(reply, request) for reply in replies])

    async def multi_exec(self, request: web.Request) -> web.Response:
        commands = _commands(await request.json())
        reply = (await self._run([["MULTI"], *commands, ["EXEC"]]))[-1]
        if isinstance(reply, redis.ResponseError):
            return _answer(_encode_reply(reply, request), failed=True)
        return _answer([_encode_reply(each, request) for each in reply])

    async def _run(self, commands: Sequence[Command]) -> list[Reply]:
        """Sends all commands at once on one connection; the replies are in the same order."""
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _reply(connection) for _ in commands]
        except BaseException:
            await connection.disconnect()
            raise
        finally:
            await self._pool.release(connection)

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), self._authorization.encode()):
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            answer: web.StreamResponse = await handler(request)
        except (json.JSONDecodeError, UnicodeDecodeError, MalformedCommand):
            return web.json_response({"error": "ERR failed to parse command"}, status=400)
        return answer


async def _reply(connection: redis.asyncio.Connection) -> Reply:
    try:
        return await connection.read_response()
    except redis.ResponseError as error:
        return error


def _commands(given: object) -> list[Command]:
    """A list of commands. Raises MalformedCommand."""
    if not isinstance(given, list):
        raise MalformedCommand("A pipeline is a list of commands.")
    return [_command(command) for command in given]


def _command(given: object) -> Command:
    """A command as redis-server accepts it. Raises MalformedCommand."""
    if not isinstance(given, list) or not given:
        raise MalformedCommand("A command is a list of strings and numbers.")
    command = [word if isinstance(word, str) else json.dumps(word) for word in given]
    if command[0].upper() == "EVAL" and len(command) > 1 and command[1].startswith("#!lua"):
        # upstash-ratelimit marks its scripts with a flag that only Upstash servers accept.
        command[1] = command[1].partition("\n")[2]
    return command


def _encode_reply(reply: Reply, request: web.Request) -> dict[str, Any]:
    if isinstance(reply, redis.ResponseError):
        return {"error": str(reply)}
    return {"result": _value(reply, encoded=request.headers.get("Upstash-Encoding") == "base64")}


def _value(reply: Reply, *, encoded: bool) -> Any:
    if isinstance(reply, list):
        return [_value(each, encoded=encoded) for each in reply]
    if not isinstance(reply, bytes):
        return reply
    # Upstash does not encode the status OK.
    return base64.b64encode(reply).decode() if encoded and reply != b"OK" else reply.decode("utf-8", "replace")


def _answer(body: object, *, failed: bool = False) -> web.Response:
    return web.json_response(body, status=400 if failed else 200)


if __name__ == "__main__":
    stack = Stack.from_environment()
    rest = UpstashRest(stack.secrets.upstash_token, Path(REDIS_SOCKET))
    web.run_app(rest.application(), host="127.0.0.1", port=stack.ports.upstash, access_log=None, print=None)
