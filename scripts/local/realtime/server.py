"""Supabase Realtime for the local stack: the real protocol on the gateway's port, fed by Postgres' replication."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

import psycopg
from aiohttp import WSMsgType, web
from psycopg_pool import AsyncNullConnectionPool, PoolTimeout

from scripts.local.realtime import changes
from scripts.local.realtime.authorisation import Authorisation
from scripts.local.realtime.changes import Changes
from scripts.local.realtime.channels import Channels, Socket
from scripts.local.realtime.presence import Room
from scripts.local.realtime.protocol import MAX_FRAME_BYTES, Broadcast, Malformed, encode, is_writable, json_body, wire
from scripts.local.realtime.replication import ASK_OPTIONS, Change, Connection, Stream
from scripts.local.realtime.tokens import Claims, TokenRefused, Tokens
from scripts.local.stack import Stack

log = logging.getLogger(__name__)
MESSAGES_PUBLICATION: Final = "supabase_realtime_messages_publication"
# A client that sends nothing for this long, not even heartbeats, is disconnected.
SILENCE_SECONDS: Final = 75
# How long the server waits for a client's close frame.
CLOSE_SECONDS: Final = 2
DELETE_EVERY_SECONDS: Final = 3600
DELETE_OLD_MESSAGES = "delete from realtime.messages where inserted_at < now() - interval '3 days'"
CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "authorization, x-client-info, apikey, content-type",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
}


class Realtime:
    """The server. It logs in as the superuser, like hosted Realtime, and checks policies as the caller."""

    def __init__(self, stack: Stack) -> None:
        url = stack.postgres.url("supabase_admin")
        self._tokens = Tokens(stack.secrets, stack.environment()["CLERK_ISSUER"])
        # No connection is kept open, so none has to recover after a restart of Postgres.
        self._pool = AsyncNullConnectionPool[psycopg.AsyncConnection[Any]](
            url, max_size=8, open=False, timeout=2, kwargs={"autocommit": True, "options": ASK_OPTIONS}
        )
        ready = asyncio.Event()
        channels = Channels(self._tokens, Authorisation(self._pool), Changes(self._pool), ready)
        self._tables = Stream(url, changes.PUBLICATION, channels.deliver_change, channels.on_changes_resumed, ready)
        self._messages = Stream(
            url, MESSAGES_PUBLICATION, self._deliver_message, channels.on_messages_resumed, asyncio.Event()
        )
        self._channels = channels
        self._sockets: set[Socket] = set()

    def add_to(self, application: web.Application) -> None:
        """Serves /realtime/v1 while the application runs."""
        application.cleanup_ctx.append(self._lifetime)
        application.on_shutdown.append(self.disconnect_clients)
        router = application.router
        router.add_get("/realtime/v1/websocket", self.websocket)
        router.add_get("/realtime/v1/health", self.health)
        for path, broadcast in (
            ("/realtime/v1/api/broadcast", self.broadcast_many),
            ("/realtime/v1/api/broadcast/{topic}/events/{event}", self.broadcast_one),
        ):
            router.add_options(path, self.preflight)
            router.add_post(path, partial(self._answer, broadcast))

    # --- the websocket

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("x-api-key") or request.query.get("apikey")
        try:
            token = await self._tokens.of_key(key)
        except TokenRefused as refusal:
            return web.json_response({"error": str(refusal).partition(" seconds ago")[0]}, status=401)
        connection = web.WebSocketResponse(
            max_msg_size=MAX_FRAME_BYTES, compress=False, receive_timeout=SILENCE_SECONDS, timeout=CLOSE_SECONDS
        )
        await connection.prepare(request)
        transport = cast("asyncio.Transport", request.transport)  # None only once the connection is lost
        socket = Socket(connection, transport, wire(request.query.get("vsn", "1.0.0")), token)
        self._sockets.add(socket)
        writing = asyncio.create_task(socket.write())
        try:
            with suppress(TimeoutError):
                await self._serve_socket(socket)
        finally:
            writing.cancel()
            self._sockets.discard(socket)
            self._channels.disconnect(socket)
            with suppress(asyncio.CancelledError, OSError):
                await writing
        return connection

    async def _serve_socket(self, socket: Socket) -> None:
        async for frame in socket.connection:
            if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            try:
                await self._channels.handle(socket, socket.wire.read(frame.data))
            except Malformed as malformed:
                await socket.connection.close(code=1007, message=str(malformed).encode())
            except Exception as error:
                log.error("A message could not be handled: %s.", type(error).__name__)  # noqa: TRY400 - it may hold values
                await socket.connection.close(code=1011)

    # --- REST

    async def preflight(self, _: web.Request) -> web.Response:
        return web.Response(headers=CORS)

    async def _answer(
        self, broadcast: Callable[[web.Request, Claims], Awaitable[web.Response]], request: web.Request
    ) -> web.Response:
        try:
            response = await broadcast(request, await self._claims(request))
        except TokenRefused:
            response = web.json_response({"message": "Unauthorized"}, status=401)
        except Malformed as malformed:
            response = web.json_response({"errors": {"body": [str(malformed)]}}, status=422)
        except (psycopg.OperationalError, PoolTimeout):
            response = web.json_response({"message": "The database does not answer"}, status=503)
        response.headers.update(CORS)
        return response

    async def broadcast_many(self, request: web.Request, claims: Claims) -> web.Response:
        """Sends `{"messages": [{topic, event, payload, private?}]}`, except messages that the caller may not send."""
        given = json_body(await request.read())
        messages = given.get("messages") if isinstance(given, dict) else None
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise Malformed("messages must be a list of {topic, event, payload}")
        for message in messages:
            private = message.get("private") is True
            if not private or await self._channels.may_broadcast(claims, message["topic"]):
                sent = Broadcast(message["event"], encode(message["payload"]).encode())
                self._channels.broadcast(Room(message["topic"], private), sent)
        return web.Response(status=202)

    async def broadcast_one(self, request: web.Request, claims: Claims) -> web.Response:
        """Sends the body to one topic: as binary if it is application/octet-stream, else as JSON."""
        topic, event = request.match_info["topic"], request.match_info["event"]
        private, is_json = request.query.get("private") == "true", request.content_type != "application/octet-stream"
        body = await request.read()
        if is_json:
            json_body(body)
        if not is_writable(topic + event):
            raise Malformed("a topic or event has invalid characters")
        if private and not await self._channels.may_broadcast(claims, topic):
            return web.json_response({"message": "Unauthorized"}, status=403)
        self._channels.broadcast(Room(topic, private), Broadcast(event, body, is_json))
        return web.Response(status=202)

    async def _claims(self, request: web.Request) -> Claims:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("apikey", "")
        return await self._tokens.claims(await self._tokens.of_key(given))

    async def health(self, _: web.Request) -> web.Response:
        """Reports which of the two streams are down."""
        streams = {"postgres_changes": self._tables, "broadcast": self._messages}
        down = [name for name, stream in streams.items() if not stream.ready.is_set()]
        return web.json_response({"down": down}, status=503 if down else 200)

    # --- broadcasts from the database

    async def _deliver_message(self, _: Connection, change: Change) -> None:
        """Sends a row of realtime.messages as a broadcast."""
        message = change.new
        if change.kind != "INSERT" or message is None or message["extension"] != "broadcast":
            return
        topic, event, private = message["topic"], message["event"], message["private"]
        binary, payload = message.get("binary_payload"), message["payload"]
        if topic is None or event is None or private is None or (binary is None and payload is None):
            return
        body = bytes.fromhex(binary.removeprefix("\\x")) if binary is not None else (payload or "").encode()
        sent = Broadcast(event, body, is_json=binary is None, meta={"id": message["id"]})
        self._channels.broadcast(Room(topic, private == "t"), sent)

    # --- lifetime

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        await self._pool.open(wait=False)
        tasks = [
            asyncio.create_task(work) for work in (self._tables.run(), self._messages.run(), self._delete_regularly())
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()

    async def delete_old_messages(self) -> None:
        """Deletes messages after three days, as hosted Realtime does."""
        async with self._pool.connection() as connection:
            await connection.execute(DELETE_OLD_MESSAGES)

    async def _delete_regularly(self) -> None:
        while True:
            await self._messages.ready.wait()
            with suppress(psycopg.Error, PoolTimeout):
                await self.delete_old_messages()
            await asyncio.sleep(DELETE_EVERY_SECONDS)

    async def disconnect_clients(self, _: web.Application | None = None) -> None:
        """Closes every connection. Clients reconnect by themselves."""
        closing = [socket.connection.close(code=1001) for socket in self._sockets]
        await asyncio.gather(*closing, return_exceptions=True)


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("payload"), dict):
        return False
    names = (message.get("topic"), message.get("event"))
    return all(isinstance(name, str) and name and is_writable(name) for name in names)
