"""Who is in a room: under each key the metas that its channels track."""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import NamedTuple

from scripts.local.realtime.protocol import Json


class Room(NamedTuple):
    """Where channels meet. A public and a private channel of one name are two rooms."""

    name: str
    private: bool


class Presence:
    """The metas of every room. What changes is returned as the `presence_diff` to send."""

    def __init__(self) -> None:
        self._rooms: dict[Room, dict[str, list[Json]]] = defaultdict(dict)

    def state(self, room: Room) -> Json:
        """What a client gets that joins."""
        return {key: {"metas": metas} for key, metas in self._rooms.get(room, {}).items()}

    def track(self, room: Room, key: str, payload: Json, previous: Json | None) -> tuple[Json, Json]:
        """Puts `payload` in the place of a channel's previous meta. Returns the new meta and the diff."""
        meta = {**payload, "phx_ref": uuid.uuid4().hex[:16]}
        leaves: Json = {}
        if previous is not None:
            meta["phx_ref_prev"] = previous["phx_ref"]
            leaves = self.untrack(room, key, previous)["leaves"]
        self._rooms[room].setdefault(key, []).append(meta)
        return meta, {"joins": {key: {"metas": [meta]}}, "leaves": leaves}

    def untrack(self, room: Room, key: str, meta: Json) -> Json:
        """Takes a channel's meta away and returns the diff."""
        keys = self._rooms[room]
        keys[key].remove(meta)
        if not keys[key]:
            del keys[key]
        if not keys:
            del self._rooms[room]
        return {"joins": {}, "leaves": {key: {"metas": [meta]}}}
