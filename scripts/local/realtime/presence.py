"""Presence: the metas that the channels of each room track, by key."""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import NamedTuple

from scripts.local.realtime.protocol import Json


class Room(NamedTuple):
    """All channels with the same name. A public and a private channel of one name are in two rooms."""

    name: str
    private: bool


class Presence:
    """The metas of all rooms. Each change returns the `presence_diff` to send."""

    def __init__(self) -> None:
        self._rooms: dict[Room, dict[str, list[Json]]] = defaultdict(dict)

    def state(self, room: Room) -> Json:
        """The `presence_state` for a client that joins."""
        return {key: {"metas": metas} for key, metas in self._rooms.get(room, {}).items()}

    def track(self, room: Room, key: str, payload: Json, previous: Json | None) -> tuple[Json, Json]:
        """Replaces the previous meta of a channel by `payload`. Returns the new meta and the diff."""
        meta = {**payload, "phx_ref": uuid.uuid4().hex[:16]}
        leaves: Json = {}
        if previous is not None:
            meta["phx_ref_prev"] = previous["phx_ref"]
            leaves = self.untrack(room, key, previous)["leaves"]
        self._rooms[room].setdefault(key, []).append(meta)
        return meta, {"joins": {key: {"metas": [meta]}}, "leaves": leaves}

    def untrack(self, room: Room, key: str, meta: Json) -> Json:
        """Removes the meta of a channel, and returns the diff."""
        keys = self._rooms[room]
        keys[key].remove(meta)
        if not keys[key]:
            del keys[key]
        if not keys:
            del self._rooms[room]
        return {"joins": {}, "leaves": {key: {"metas": [meta]}}}
