"""Channels: joining, leaving, tokens, broadcasts and presence, as the clients of Supabase Realtime expect them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from aiohttp import web
from psycopg_pool import PoolTimeout

from scripts.local.realtime.authorisation import ALL, NONE, Access, Authorisation
from scripts.local.realtime.changes import GROUP, Changes, Subscription, SubscriptionRefused
from scripts.local.realtime.presence import Presence, Room
from scripts.local.realtime.protocol import HEARTBEAT_TOPIC, Broadcast, Frame, Json, Message, Wire, encode
from scripts.local.realtime.replication import Change, Connection
from scripts.local.realtime.tokens import Claims, TokenRefused, Tokens

log = logging.getLogger(__name__)
PREFIX: Final = "realtime:"
SUBSCRIBED_MESSAGE: Final = "Subscribed to PostgreSQL"
NO_DATABASE: Final = "Realtime was unable to connect to the project database"
STREAM_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
MAX_BACKLOG: Final = 64_000_000
FRAME_OVERHEAD: Final = 200
MAX_TIMER_SECONDS: Final = 3600.0


class Refused(Exception):
    """A channel cannot be joined, or has to be closed; str() is the message for the client."""


class Socket:
    """A client: its connection, the token of the connection, its channels, and the frames that wait to be sent."""

    def __init__(self, connection: web.WebSocketResponse, transport: asyncio.Transport, wire: Wire, token: str) -> None:
        self.connection = connection
        self.wire = wire
        self.token = token
        self.channels: dict[str, Channel] = {}
        self._transport = transport
        self._queue = asyncio.Queue[Frame]()
        self._backlog = 0

    def send(self, frame: Frame | None) -> None:
        """Queues a frame. A client that reads too slowly is disconnected; it reconnects and reads the rows again."""
        if frame is None:
            return
        self._backlog += len(frame) + FRAME_OVERHEAD
        if self._backlog > MAX_BACKLOG:
            self._transport.abort()
        else:
            self._queue.put_nowait(frame)

    async def write(self) -> None:
        """Sends the queued frames until cancelled."""
        while True:
            frame = await self._queue.get()
            if isinstance(frame, str):
                await self.connection.send_str(frame)
            else:
                await self.connection.send_bytes(frame)
            self._backlog -= len(frame) + FRAME_OVERHEAD


@dataclass(frozen=True)
class Settings:
    """The settings with which a client joins."""

    private: bool
    echo: bool
    acknowledge: bool
    presence: bool
    presence_key: str
    changes: tuple[Json, ...]

    @classmethod
    def of(cls, payload: Json) -> Settings:
        config = _object(payload.get("config"))
        broadcast, presence = _object(config.get("broadcast")), _object(config.get("presence"))
        changes = config.get("postgres_changes")
        return cls(
            private=_true(config.get("private")),
            echo=_true(broadcast.get("self")),
            acknowledge=_true(broadcast.get("ack")),
            presence=_true(presence.get("enabled")),
            presence_key=str(presence.get("key") or uuid.uuid4()),
            changes=tuple(each for each in changes if isinstance(each, dict)) if isinstance(changes, list) else (),
        )


@dataclass(eq=False)
class Channel:
    """A client's membership of a room. `writing` is checked when the client first sends."""

    socket: Socket
    topic: str
    join_ref: str | None
    settings: Settings
    token: str
    claims: Claims = field(default_factory=dict)
    reading: Access = ALL
    writing: Access | None = None
    sees_presence: bool = False
    tracked: Json | None = None
    meta: Json | None = None
    subscriptions: list[Subscription] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is still joined: a token may expire, or a client disconnect, during a query."""
        return self.socket.channels.get(self.topic) is self

    @property
    def name(self) -> str:
        return self.topic.removeprefix(PREFIX)

    @property
    def room(self) -> Room:
        return Room(self.name, self.settings.private)

    def push(self, event: str, payload: str, ref: str | None = None) -> None:
        self.socket.send(self.socket.wire.push(self.topic, event, payload, ref, self.join_ref))

    def reply(self, ref: str | None, status: str = "ok", response: Json | None = None) -> None:
        self.push("phx_reply", encode({"status": status, "response": response or {}}), ref)

    def push_system(self, extension: str, status: str, message: str) -> None:
        """Sends a `system` message."""
        payload = {"extension": extension, "status": status, "message": message, "channel": self.name}
        self.push("system", encode(payload))


class Channels:
    """All channels of all clients. `stream_ready` is set while the stream of changes runs."""

    def __init__(
        self, tokens: Tokens, authorisation: Authorisation, changes: Changes, stream_ready: asyncio.Event
    ) -> None:
        self._tokens = tokens
        self._authorisation = authorisation
        self._changes = changes
        self._stream_ready = stream_ready
        self._presence = Presence()
        self._rooms: dict[Room, dict[Channel, None]] = defaultdict(dict)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what clients send

    async def handle(self, socket: Socket, message: Message) -> None:
        """Handles one message of a client."""
        channel = socket.channels.get(message.topic)
        if message.topic == HEARTBEAT_TOPIC or (channel is None and message.event == "phx_leave"):
            _reply(socket, message)
        elif message.event == "phx_join":
            await self._join(socket, message)
        elif channel is None:
            _reply(socket, message, "error", {"reason": "unmatched topic"})
        elif message.event == "phx_leave":
            channel.reply(message.ref)
            self._close(channel)
        elif message.event == "access_token":
            await self._renew(channel, message.payload.get("access_token"))
        elif message.broadcast is not None:
            await self._send(channel, message.ref, message.broadcast)
        elif message.event == "presence":
            await self._presence_event(channel, message)

    def disconnect(self, socket: Socket) -> None:
        """Removes all channels of a client that has disconnected."""
        channels = list(socket.channels.values())
        for channel in channels:
            self._leave_room(channel)
        for channel in channels:
            self._untrack(channel)

    async def _join(self, socket: Socket, message: Message) -> None:
        if message.topic in socket.channels:
            self._close(socket.channels[message.topic])
        given = message.payload.get("user_token") or message.payload.get("access_token")
        token = given if isinstance(given, str) and not given.startswith("sb_") else socket.token
        channel = Channel(
            socket, message.topic, message.join_ref or message.ref, Settings.of(message.payload), token
        )  # fmt: skip
        try:
            await self._admit(channel)
        except Refused as refusal:
            _reply(socket, message, "error", {"reason": str(refusal)})
            return
        socket.channels[channel.topic] = channel
        self._rooms[channel.room][channel] = None
        self._watch_expiry(channel)
        channel.subscriptions = [Subscription.of(wanted, channel.claims) for wanted in channel.settings.changes]
        problem = await self._resolve(channel)
        if not channel.is_open:
            return
        described = [each.wanted | {"id": each.number} for each in channel.subscriptions]
        channel.reply(message.ref, response={"postgres_changes": described})
        if channel.subscriptions:
            channel.push_system("postgres_changes", "error" if problem else "ok", problem or SUBSCRIBED_MESSAGE)
        if problem == NO_DATABASE:
            self._resolve_in_background(channel)
        channel.sees_presence = channel.settings.presence
        self._push_presence(channel)

    async def _admit(self, channel: Channel) -> None:
        """Checks the token and the policies. Raises Refused."""
        if not channel.topic.startswith(PREFIX):
            raise Refused("unmatched topic")
        if not channel.name:
            raise Refused("TopicNameRequired: You must provide a topic name")
        try:
            channel.claims = await self._tokens.claims(channel.token)
        except TokenRefused as refusal:
            raise Refused(refusal.reason) from None
        channel.reading = await self._reading(channel)
        if channel.reading == NONE:
            raise Refused(f"Unauthorized: You do not have permissions to read from this Channel topic: {channel.name}")

    async def _resolve(self, channel: Channel) -> str | None:
        """Resolves the channel's subscriptions to changes, once the stream runs. Returns the problem, if any."""
        for subscription in channel.subscriptions:
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    await self._stream_ready.wait()
                await self._changes.resolve(subscription)
            except SubscriptionRefused as refusal:
                subscription.tables = frozenset()
                return str(refusal)
            except (psycopg.OperationalError, PoolTimeout, TimeoutError):
                return NO_DATABASE
        return None

    def _resolve_in_background(self, channel: Channel) -> None:
        """Resolves in the background, as soon as the database answers, and sends the outcome to the client."""
        task = asyncio.create_task(self._resolve_until_answered(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve_until_answered(self, channel: Channel) -> None:
        while (problem := await self._resolve(channel)) == NO_DATABASE and channel.is_open:
            await asyncio.sleep(RETRY_SECONDS)
        if channel.is_open:
            channel.push_system("postgres_changes", "error" if problem else "ok", problem or SUBSCRIBED_MESSAGE)

    async def _renew(self, channel: Channel, token: object) -> None:
        """Replaces the token and checks access again. Closes the channel if it may no longer be read."""
        if not isinstance(token, str) or token.startswith("sb_") or token == channel.token:
            return
        before = channel.reading
        channel.token, channel.writing = token, None
        try:
            channel.claims = await self._tokens.claims(token)
            channel.reading = await self._reading(channel)
        except (TokenRefused, Refused) as refusal:
            if channel.is_open:
                self._close_with_error(channel, str(refusal))
            return
        if not channel.is_open:
            return
        if before.broadcast > channel.reading.broadcast or before.presence > channel.reading.presence:
            self._close_with_error(
                channel, f"You no longer have permission to read from this Channel topic: {channel.name}"
            )
            return
        for subscription in channel.subscriptions:
            subscription.claims = channel.claims
        self._watch_expiry(channel)
        if channel.subscriptions:
            self._resolve_in_background(channel)

    async def _send(self, channel: Channel, ref: str | None, broadcast: Broadcast) -> None:
        if not (await self._writing(channel)).broadcast:
            return  # no reply, as in hosted Realtime: the acknowledgement times out
        self.broadcast(channel.room, broadcast, skip=None if channel.settings.echo else channel)
        if channel.settings.acknowledge:
            channel.reply(ref)

    async def _presence_event(self, channel: Channel, message: Message) -> None:
        event, payload = str(message.payload.get("event", "")).lower(), message.payload.get("payload", {})
        if event == "track":
            may = await self._writing(channel)
            if not channel.is_open:
                return
            if not may.presence:
                channel.reply(message.ref, "error")
                return
            if not isinstance(payload, dict):
                channel.reply(message.ref, "error", {"reason": "Presence track payload must be a map"})
                return
            self._track(channel, payload)
        elif event == "untrack":
            self._untrack(channel)
        channel.reply(message.ref, "ok" if event in ("track", "untrack") else "error")
        if event == "track" and not channel.sees_presence:
            channel.sees_presence = True
            self._push_presence(channel)

    # --- what is sent to clients

    def broadcast(self, room: Room, broadcast: Broadcast, skip: Channel | None = None) -> None:
        """Sends a broadcast to all channels in the room that may read it."""
        frames: dict[type[Wire], Frame | None] = {}
        for channel in self._list_channels(room):
            if channel is not skip and channel.reading.broadcast:
                wire = channel.socket.wire
                if type(wire) not in frames:
                    frames[type(wire)] = wire.broadcast(channel.topic, broadcast)
                channel.socket.send(frames[type(wire)])

    async def may_broadcast(self, claims: Claims, topic: str) -> bool:
        """Whether the caller may send to a private topic, by REST. Raises psycopg.OperationalError or PoolTimeout."""
        return (await self._authorisation.writing(claims, topic)).broadcast

    async def deliver_change(self, connection: Connection, change: Change) -> None:
        """Sends a change to the subscriptions that may see it."""
        channels = itertools.chain.from_iterable(list(room) for room in list(self._rooms.values()))
        wanted = {each: channel for channel in channels for each in channel.subscriptions if each.covers(change)}
        waiting = iter(wanted)
        while group := list(itertools.islice(waiting, GROUP)):
            for notice in await self._changes.build_notices(connection, change, group):
                numbers = defaultdict(list)
                for subscription in notice.subscriptions:
                    numbers[wanted[subscription]].append(subscription.number)
                for channel, ids in numbers.items():
                    if channel.is_open:
                        channel.push("postgres_changes", f'{{"ids":{encode(ids)},"data":{notice.data}}}')

    def on_changes_resumed(self) -> None:
        """The stream of changes runs again. Changes in between are lost, so clients are notified to read again."""
        for channel in itertools.chain.from_iterable(self._rooms.values()):
            if channel.subscriptions:
                self._resolve_in_background(channel)

    def on_messages_resumed(self) -> None:
        """The stream of broadcasts runs again. Private channels may have missed some, so clients have to rejoin."""
        for channel in list(itertools.chain.from_iterable(self._rooms.values())):
            if channel.settings.private:
                self._forget(channel)
                channel.push("phx_error", "{}", channel.join_ref)

    # --- access and closing

    async def _reading(self, channel: Channel) -> Access:
        if not channel.settings.private:
            return ALL
        try:
            return await self._authorisation.reading(channel.claims, channel.name)
        except (psycopg.OperationalError, PoolTimeout):
            raise Refused(NO_DATABASE) from None

    async def _writing(self, channel: Channel) -> Access:
        if not channel.settings.private:
            return ALL
        if channel.writing is None:
            try:
                channel.writing = await self._authorisation.writing(channel.claims, channel.name)
            except (psycopg.OperationalError, PoolTimeout):
                return NONE  # only for this message: the next one checks again
        return channel.writing

    def _watch_expiry(self, channel: Channel) -> None:
        """Closes the channel when its token expires, unless the token is renewed."""
        if channel.timer is not None:
            channel.timer.cancel()
        left = int(channel.claims["exp"]) - time.time()
        loop = asyncio.get_running_loop()
        if left > MAX_TIMER_SECONDS:
            channel.timer = loop.call_later(MAX_TIMER_SECONDS, self._watch_expiry, channel)
        else:
            channel.timer = loop.call_later(max(0, left), self._expire, channel)

    def _expire(self, channel: Channel) -> None:
        self._close_with_error(
            channel, f"Token has expired {max(0, int(time.time()) - int(channel.claims['exp']))} seconds ago"
        )

    def _close_with_error(self, channel: Channel, reason: str) -> None:
        channel.push_system("system", "error", reason)
        self._close(channel)

    def _close(self, channel: Channel) -> None:
        self._forget(channel)
        channel.push("phx_close", "{}", channel.join_ref)

    def _forget(self, channel: Channel) -> None:
        self._leave_room(channel)
        self._untrack(channel)

    def _leave_room(self, channel: Channel) -> None:
        if channel.timer is not None:
            channel.timer.cancel()
        if channel.socket.channels.get(channel.topic) is channel:
            del channel.socket.channels[channel.topic]
        room = self._rooms[channel.room]
        room.pop(channel, None)
        if not room:
            del self._rooms[channel.room]

    # --- presence

    def _push_presence(self, channel: Channel) -> None:
        if channel.sees_presence and channel.reading.presence:
            channel.push("presence_state", encode(self._presence.state(channel.room)))

    def _track(self, channel: Channel, payload: Json) -> None:
        if payload == channel.tracked:
            return
        channel.tracked = payload
        key = channel.settings.presence_key
        channel.meta, diff = self._presence.track(channel.room, key, payload, channel.meta)
        self._push_difference(channel.room, diff)

    def _untrack(self, channel: Channel) -> None:
        if channel.meta is not None:
            diff = self._presence.untrack(channel.room, channel.settings.presence_key, channel.meta)
            channel.tracked = channel.meta = None
            self._push_difference(channel.room, diff)

    def _push_difference(self, room: Room, diff: Json) -> None:
        text = encode(diff)
        for channel in self._list_channels(room):
            if channel.reading.presence:
                channel.socket.send(channel.socket.wire.push(channel.topic, "presence_diff", text))

    def _list_channels(self, room: Room) -> Iterator[Channel]:
        return iter(list(self._rooms[room])) if room in self._rooms else iter(())


def _reply(socket: Socket, message: Message, status: str = "ok", response: Json | None = None) -> None:
    payload = encode({"status": status, "response": response or {}})
    socket.send(socket.wire.push(message.topic, "phx_reply", payload, message.ref, message.join_ref))


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true")
