"""The Clerk stand-in: Clerk's public key, session tokens for its users, complete events, and Clerk's Backend API.

  GET  /.well-known/jwks.json  as Clerk serves it
  ...  /v1/...                 the Backend API: see backend.py and lists.py
  GET  /stand-in/people        -> {people: [{user_id, name, organizations: [{organization_id, name, role}]}]}
  POST /stand-in/tokens        {user_id, organization_id?, second_factor?, lifetime?, claims?} -> {token, claims}
  POST /stand-in/events        {type, data?, timestamp?, message_id?} -> {message_id, event}

An event of /stand-in/events is completed and applied to the directory; the caller sends it. The stand-in serves web
pages only if their origin is an authorized party.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from scripts.local.clerk import limits, svix
from scripts.local.clerk.backend import BackendApi
from scripts.local.clerk.directory import Directory, Object, now
from scripts.local.clerk.errors import ClerkRefusal, ParameterMissing
from scripts.local.stack import Stack

TOKEN_SECONDS = 60
NOT_BEFORE_SECONDS = 5


class Keys:
    """The RSA key of the instance, created at the first start. Its id is the id of the instance, as at Clerk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / "key.pem"
        if not file.exists():
            _make_key(file)
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError(f"{file} does not hold an RSA key")
        self.private = key
        numbers = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self.id = f"ins_{numbers['n'][:24].translate({ord('-'): 'a', ord('_'): 'b'})}"
        self.jwks = {
            "keys": [{"use": "sig", "kty": "RSA", "kid": self.id, "alg": "RS256", "n": numbers["n"], "e": numbers["e"]}]
        }

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.private, algorithm="RS256", headers={"kid": self.id, "cat": "cl_B7d4PD111AAA"})


class ClerkStandIn:
    """The server. `issuer` is its own URL, `parties` the origins that tokens are issued to."""

    def __init__(
        self, folder: Path, issuer: str, parties: Sequence[str], endpoint: svix.Endpoint, secret_key: str
    ) -> None:
        self.keys = Keys(folder)
        self.directory = Directory(folder / "directory.json")
        self._issuer = issuer
        self._parties = parties
        self._deliveries = svix.Deliveries(endpoint)
        self._backend = BackendApi(self.directory, secret_key, self.send_event, self.keys.id, limits.DEVELOPMENT)

    def application(self) -> web.Application:
        middlewares = [_allow_pages_of(self._parties), _report_failures]
        application = web.Application(middlewares=middlewares)
        application.router.add_get("/.well-known/jwks.json", self.jwks)
        application.router.add_get("/stand-in/people", self.people)
        application.router.add_post("/stand-in/tokens", self.tokens)
        application.router.add_post("/stand-in/events", self.events)
        application.add_subapp("/v1/", self._backend.application())
        application.on_shutdown.append(lambda _: self._deliveries.stop())
        return application

    async def jwks(self, _: web.Request) -> web.Response:
        return web.json_response(self.keys.jwks)

    async def people(self, _: web.Request) -> web.Response:
        return web.json_response({"people": self.directory.people()})

    async def tokens(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        claims = self.build_claims(
            wanted["user_id"],
            wanted.get("organization_id"),
            second_factor=wanted.get("second_factor", True),
            lifetime=wanted.get("lifetime", TOKEN_SECONDS),
            party=request.headers.get("Origin", self._parties[0]),
        )
        claims |= wanted.get("claims", {})
        claims = {name: value for name, value in claims.items() if value is not None}
        return web.json_response({"token": self.keys.sign(claims), "claims": claims})

    async def events(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        event = self.event(wanted["type"], wanted.get("data", {}), wanted.get("timestamp"))
        message_id = wanted.get("message_id") or _new_message_id()
        return web.json_response({"message_id": message_id, "event": event})

    def send_event(self, event_type: str, data: Object) -> None:
        """Applies an event with this data, and delivers it to the service in the background."""
        self._deliveries.begin(_new_message_id(), svix.encode_body(self.event(event_type, data)))

    def event(self, event_type: str, data: Object, timestamp: int | None = None) -> Object:
        """Completes and applies an event, and returns it. `timestamp` is in milliseconds. Raises IncompleteData."""
        whole = self.directory.complete(event_type, data)
        self.directory.apply(event_type, whole)
        return {
            "data": whole,
            "event_attributes": {"http_request": {"client_ip": "192.0.2.1", "user_agent": "Clerk stand-in"}},
            "instance_id": self.keys.id,
            "object": "event",
            "timestamp": timestamp or now(),
            "type": event_type,
        }

    def build_claims(
        self, user_id: str, organization_id: str | None, *, second_factor: bool, lifetime: int, party: str
    ) -> Object:
        """Version 2 claims of a new session. Raises Unknown if the user or the membership does not exist."""
        self.directory.user(user_id)
        issued_at = int(time.time())
        claims: Object = {
            "azp": party,
            "exp": issued_at + lifetime,
            "fva": [0, 0 if second_factor else -1],
            "iat": issued_at,
            "iss": self._issuer,
            "jti": secrets.token_hex(10),
            "nbf": issued_at - NOT_BEFORE_SECONDS,
            "role": "authenticated",
            "sid": f"sess_{secrets.token_hex(13)}",
            "sts": "active",
            "sub": user_id,
            "v": 2,
        }
        if organization_id is not None:
            membership = self.directory.membership(user_id, organization_id)
            claims |= _organization_claims(membership, self.directory.organization(organization_id))
        return claims


def _organization_claims(membership: Object, organization: Object) -> Object:
    """The claim `o`, and `fea` if there are custom permissions. System permissions are never in a token.

    `per` lists the permissions without their feature, and `fea` the features. `fpm` has a number per feature whose bits
    are its permissions, the lowest bit being the first of `per` (as Clerk's SDKs decode it). Example: the permissions
    billing:read, projects:manage and projects:read give per "manage,read", fea "o:billing,o:projects" and fpm "2,3".
    """
    claim = {"id": organization["id"], "slg": organization["slug"], "rol": membership["role"].removeprefix("org:")}
    custom = [key.split(":")[1:] for key in membership["permissions"] if not key.startswith("org:sys_")]
    if not custom:
        return {"o": claim}
    features = sorted({feature for feature, _ in custom})
    permissions = sorted({permission for _, permission in custom})
    masks = [
        sum(1 << bit for bit, permission in enumerate(permissions) if [feature, permission] in custom)
        for feature in features
    ]
    claim |= {"per": ",".join(permissions), "fpm": ",".join(map(str, masks))}
    return {"o": claim, "fea": ",".join(f"o:{feature}" for feature in features)}


def _new_message_id() -> str:
    return f"msg_{secrets.token_urlsafe(20)}"


def _make_key(file: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.touch(mode=0o600)
    unfinished.write_bytes(text)
    unfinished.replace(file)


def _allow_pages_of(parties: Sequence[str]) -> Middleware:
    """Refuses requests of web pages on this machine, except those whose origin is one of `parties`.

    Otherwise any page could mint a token: by a form, by a host name that resolves to this machine, or by a script.
    """
    preflight = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "content-type"}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_json = request.method != "POST" or request.content_type == "application/json"
        if not is_json or request.url.host not in {"127.0.0.1", "localhost"}:
            return _errors("authorization_invalid", "The stand-in accepts only JSON, and only on 127.0.0.1.", 403)
        origin = request.headers.get("Origin", parties[0])
        if origin not in parties:
            return _errors(
                "origin_invalid", f"The stand-in serves only pages of {', '.join(parties)}: see .env.example.", 403
            )
        allowed = {"Access-Control-Allow-Origin": origin, "Vary": "Origin", "X-Content-Type-Options": "nosniff"}
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=allowed | preflight)
        response = await handler(request)
        response.headers.update(allowed)
        return response

    return guard


@web.middleware
async def _report_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Returns a ClerkRefusal in Clerk's format. A KeyError means that the body lacks a parameter."""
    try:
        response = await handler(request)
    except ClerkRefusal as refusal:
        return _respond_with_refusal(refusal)
    except KeyError as missing:
        return _respond_with_refusal(ParameterMissing(str(missing.args[0])))
    return response


def _errors(code: str, message: str, status: int) -> web.Response:
    return _respond_with_refusal(ClerkRefusal(status, code, message))


def _respond_with_refusal(refusal: ClerkRefusal) -> web.Response:
    body = {"errors": [refusal.error], "clerk_trace_id": secrets.token_hex(16)}
    return web.json_response(body, status=refusal.status, headers=refusal.headers)


if __name__ == "__main__":
    stack = Stack.from_environment()
    environment = stack.environment()
    stand_in = ClerkStandIn(
        stack.clerk_folder,
        issuer=environment["CLERK_ISSUER"],
        parties=environment["CLERK_AUTHORIZED_PARTIES"].split(","),
        endpoint=svix.Endpoint(f"{environment['SERVICE_URL']}/webhooks/clerk", stack.secrets.webhook_secret),
        secret_key=stack.secrets.clerk_secret_key,
    )
    web.run_app(stand_in.application(), host="127.0.0.1", port=stack.ports.clerk, access_log=None, print=None)
