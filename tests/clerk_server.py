"""Runs the stand-in's Backend API in a thread, with a directory that the test fills and responses that it may replace."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler

from scripts.local.clerk.backend import BackendApi
from scripts.local.clerk.directory import Directory
from scripts.local.clerk.limits import Limit
from scripts.local.clerk.server import _report_failures
from tests import events
from tests.events import Json
from tests.simulated_clerk import Clerk

SECRET_KEY = "sk_test_MotherOfAllKeys0123456789"
INSTANCE = "ins_test"


@dataclass
class ClerkServer:
    """A running server. `before` is called with each request, and may return the response itself."""

    url: str = ""
    directory: Directory = field(default_factory=Directory)
    requests: list[str] = field(default_factory=list)
    before: Callable[[web.Request], web.Response | None] = lambda _: None

    @property
    def environment(self) -> dict[str, str]:
        return {"CLERK_API_URL": self.url, "CLERK_SECRET_KEY": SECRET_KEY}

    def put(self, *objects: Json) -> None:
        """Stores objects of any kind, without an event."""
        places = {
            "user": self.directory.users,
            "organization": self.directory.organizations,
            "organization_membership": self.directory.memberships,
            "organization_invitation": self.directory.invitations,
            "role": self.directory.roles,
        }
        for each in objects:
            stored = json.loads(json.dumps(each))
            if each["object"] == "commerce_subscription":
                self.directory.subscriptions[each["payer"]["organization_id"]] = stored
            else:
                places[each["object"]][each["id"]] = stored

    def forget(self, clerk_id: str) -> None:
        """Deletes an object and its dependents, without an event."""
        self.directory._remove(clerk_id)
        self.directory.invitations.pop(clerk_id, None)

    def become(self, clerk: Clerk, prefix: str) -> None:
        """Replaces all objects by those of a simulated Clerk."""
        self.directory = Directory()
        everything = [each for objects in list_objects(clerk).values() for each in objects]
        self.put(*json.loads(json.dumps(everything).replace("~", prefix)))


def list_objects(clerk: Clerk) -> dict[str, list[Json]]:
    """The objects of a simulated Clerk, by kind."""
    memberships = [
        events.membership(
            known["id"], clerk.organizations[known["org"]], clerk.users[known["user"]], known["role"],
            known["updated_at"], created_at=known["created_at"],
        )
        for known in clerk.memberships.values()
    ]  # fmt: skip
    return {
        "user": list(clerk.users.values()),
        "organization": list(clerk.organizations.values()),
        "membership": memberships,
        "invitation": list(clerk.waiting().values()),
    }


@contextmanager
def running_clerk(*limits: Limit) -> Iterator[ClerkServer]:
    server = ClerkServer()
    loop = asyncio.new_event_loop()

    @web.middleware
    async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
        server.requests.append(request.path_qs)
        return server.before(request) or await handler(request)

    async def start() -> web.AppRunner:
        application = web.Application(middlewares=[record, _report_failures])
        backend = BackendApi(_CurrentDirectory(server), SECRET_KEY, lambda *_: None, INSTANCE, limits)  # type: ignore[arg-type]
        application.add_subapp("/v1/", backend.application())
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _CurrentDirectory:
    """The server's directory, even after `become` has replaced it."""

    def __init__(self, server: ClerkServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> object:
        return getattr(self._server.directory, name)
