"""Parses and encodes the frames of Supabase Realtime in both versions of its protocol.

Version 1 has JSON objects, version 2 JSON arrays and, for broadcasts, binary frames. The source is the code of the
server and of its clients (https://github.com/supabase/realtime, realtime-js, realtime-py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

Json = dict[str, Any]
Frame = str | bytes

MAX_FRAME_BYTES: Final = 5_000_000
HEARTBEAT_TOPIC: Final = "phoenix"
_PUSH, _BROADCAST = 3, 4
_JSON, _BINARY = 1, 0
# The message around a payload adds less than this to its depth.
_SPARE_DEPTH: Final = 50
# Characters that JSON can express, but that Postgres' type text or UTF-8 cannot hold.
_UNWRITABLE: Final = re.compile("[\0\ud800-\udfff]")


class Malformed(Exception):
    """A client sent an invalid frame."""


@dataclass(frozen=True)
class Broadcast:
    """A broadcast to a channel: `body` is JSON text, or binary. The server sets `meta`, for example an id."""

    event: str
    body: bytes
    is_json: bool = True
    meta: Json | None = None


@dataclass(frozen=True)
class Message:
    """A client's message. `broadcast` is set for broadcasts; in binary frames of version 2 the payload is empty."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Json
    broadcast: Broadcast | None = None


class Wire(Protocol):
    """A version of the protocol."""

    def read(self, frame: Frame) -> Message:
        """Parses a frame. Raises Malformed."""

    def push(self, topic: str, event: str, payload: str, ref: str | None = None, join_ref: str | None = None) -> Frame:
        """Encodes a message. `payload` is JSON text, so that it is encoded only once for many receivers."""

    def broadcast(self, topic: str, broadcast: Broadcast) -> Frame | None:
        """Encodes a broadcast. Returns None if this version cannot express it."""


class Version1:
    """JSON objects. Used by the Python clients."""

    def read(self, frame: Frame) -> Message:
        if isinstance(frame, bytes):
            raise Malformed("version 1 has no binary frames")
        given = parse(frame)
        if not isinstance(given, dict):
            raise Malformed("a frame is an object")
        return _message(*(given.get(name) for name in ("join_ref", "ref", "topic", "event", "payload")))

    def push(self, topic: str, event: str, payload: str, ref: str | None = None, join_ref: str | None = None) -> str:  # noqa: ARG002
        return f'{{"topic":{encode(topic)},"event":{encode(event)},"payload":{payload},"ref":{encode(ref)}}}'

    def broadcast(self, topic: str, broadcast: Broadcast) -> str | None:
        return self.push(topic, "broadcast", _as_payload(broadcast)) if broadcast.is_json else None


class Version2:
    """JSON arrays, and binary frames for broadcasts. Used by supabase-js."""

    def read(self, frame: Frame) -> Message:
        if isinstance(frame, bytes):
            return _binary_message(frame)
        given = parse(frame)
        if not isinstance(given, list) or len(given) != 5:
            raise Malformed("a frame must be an array of five elements")
        return _message(*given)

    def push(self, topic: str, event: str, payload: str, ref: str | None = None, join_ref: str | None = None) -> str:
        return f"[{encode(join_ref)},{encode(ref)},{encode(topic)},{encode(event)},{payload}]"

    def broadcast(self, topic: str, broadcast: Broadcast) -> Frame | None:
        meta = encode(broadcast.meta).encode() if broadcast.meta else b""
        parts = (topic.encode(), broadcast.event.encode(), meta)
        if any(len(part) > 255 for part in parts):  # a length is one byte
            return self.push(topic, "broadcast", _as_payload(broadcast)) if broadcast.is_json else None
        head = bytes([_BROADCAST, *map(len, parts), _JSON if broadcast.is_json else _BINARY])
        return head + b"".join(parts) + broadcast.body


def wire(version: str) -> Wire:
    """The version of a client's parameter `vsn`; without it, version 1."""
    return Version2() if version.startswith("2.") else Version1()


def encode(value: object) -> str:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"))


def parse(text: str) -> object:
    """The value of JSON text. Raises Malformed, also if it is nested too deeply to be encoded again."""
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant)
        deeper = value
        for _ in range(_SPARE_DEPTH):
            deeper = [deeper]
        encode(deeper)
    except (ValueError, RecursionError):
        raise Malformed("invalid JSON, or nested too deeply") from None
    return value


def json_body(body: bytes) -> object:
    """The value of JSON in UTF-8. Raises Malformed."""
    try:
        return parse(body.decode())
    except UnicodeDecodeError:
        raise Malformed("JSON must be UTF-8") from None


def is_writable(text: str) -> bool:
    """Whether Postgres can hold the text."""
    return _UNWRITABLE.search(text) is None


def _refuse_constant(constant: str) -> object:
    raise ValueError(constant)  # NaN and Infinity are not valid JSON, although Python accepts them


def _as_payload(broadcast: Broadcast) -> str:
    meta = f',"meta":{encode(broadcast.meta)}' if broadcast.meta else ""
    return f'{{"type":"broadcast","event":{encode(broadcast.event)},"payload":{broadcast.body.decode()}{meta}}}'


def _message(join_ref: object, ref: object, topic: object, event: object, payload: object) -> Message:
    if not isinstance(topic, str) or not isinstance(event, str) or not is_writable(topic + event):
        raise Malformed("a frame needs a topic and an event")
    fields = payload if isinstance(payload, dict) else {}
    sent = _broadcast(fields) if event == "broadcast" else None
    return Message(_reference(join_ref), _reference(ref), topic, event, fields, sent)


def _reference(value: object) -> str | None:
    return None if value is None else str(value)


def _broadcast(payload: Json) -> Broadcast:
    return Broadcast(str(payload.get("event", "")), encode(payload.get("payload", {})).encode())


def _binary_message(frame: bytes) -> Message:
    """The frame is: kind, five lengths, encoding, then join_ref, ref, topic, event, metadata and the payload."""
    if len(frame) < 7 or frame[0] != _PUSH:
        raise Malformed("a binary frame must be a broadcast")
    start, texts = 7, []
    for length in frame[1:6]:
        texts.append(frame[start : start + length])
        start += length
    try:
        join_ref, ref, topic, event, _ = (text.decode() for text in texts)
    except UnicodeDecodeError:
        raise Malformed("names must be UTF-8") from None
    sent = Broadcast(event, frame[start:], is_json=frame[6] == _JSON)
    if sent.is_json:
        json_body(sent.body)
    return Message(join_ref or None, ref or None, topic, "broadcast", {}, sent)
