"""Stand-ins for services outside: a signer like Svix, an issuer like Clerk, a server that fails in chosen ways."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

SECRET = "whsec_plJ3nmyCDGBKInavdOK15jsl"
OLD_SECRET = "whsec_" + base64.b64encode(b"the secret before the last one").decode()

message_numbers = count()


def new_message_id() -> str:
    return f"msg_{time.time_ns()}_{next(message_numbers)}"


def signature(body: bytes, message_id: str, timestamp: str, secret: str = SECRET) -> str:
    """Signs as Svix documents it, without the package that the service uses to verify."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def sign(body: bytes, secret: str = SECRET, *, age: float = 0, message_id: str | None = None) -> dict[str, str]:
    """The headers that Svix sends with `body`, signed `age` seconds ago."""
    message_id = message_id or new_message_id()
    timestamp = str(int(time.time() - age))
    return {
        "svix-id": message_id,
        "svix-timestamp": timestamp,
        "svix-signature": signature(body, message_id, timestamp, secret),
    }


def event(kind: str = "email.created", **data: object) -> bytes:
    """The body of an event. The default kind changes no rows."""
    return json.dumps({"data": data, "object": "event", "type": kind, "timestamp": int(time.time() * 1000)}).encode()


Answer = tuple[int, dict[str, str], bytes]
HANG_UP = None


class Outside(ThreadingHTTPServer):
    """A real HTTP server on a free port. Tests set `answer(path, headers, body)`; None closes the connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OutsideHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answer: Callable[[str, Any, bytes], Answer | None] = lambda *_: (500, {}, b"")
        self.requests: list[str] = []
        self.connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors: clients that time out are part of the tests."""


class OutsideHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Outside
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(self.path)
        answer = self.server.answer(self.path, self.headers, body)
        if answer is HANG_UP:
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_CONNECT = handle_any  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@contextmanager
def running_outside() -> Iterator[Outside]:
    server = Outside()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rest_answer(value: object, status: int = 200) -> Answer:
    return status, {}, json.dumps(value).encode()


def stored_answer(
    outcome: str = "processed", *, users: Sequence[str] = (), organizations: Sequence[str] = ()
) -> Answer:
    """The answer of receive_clerk_event() for a stored event."""
    stored = {"message_id": "msg_test", "type": "email.created", "outcome": outcome, "lag_seconds": 1.5}
    return rest_answer(stored | {"users": users, "organizations": organizations})


class Issuer:
    """A stand-in for Clerk that issues tokens: keys at a JWKS URL, and tokens signed with any key, for any claims."""

    def __init__(self, server: Outside) -> None:
        self.server = server
        self.url = server.url
        self.key = new_key()
        self.publish(self.key)

    def publish(self, *keys: RSAPrivateKey, kid: str = "ins_test") -> None:
        document = {"keys": [{**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid} for key in keys]}
        self.server.answer = lambda *_: rest_answer(document)

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims of a version 2 token. None removes a claim."""
        now = int(time.time())
        claims = {
            "iss": self.url, "sub": "user_test", "sid": "sess_test", "sts": "active", "v": 2, "jti": "j",
            "iat": now, "nbf": now - 5, "exp": now + 60, "fva": [3, -1], "role": "authenticated",
            "o": {"id": "org_test", "rol": "admin", "slg": "test"},
        }  # fmt: skip
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, *, key: RSAPrivateKey | None = None, kid: object = "ins_test", **changes: object) -> str:
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(self.claims(**changes), key or self.key, "RS256", headers=headers)


def new_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)
