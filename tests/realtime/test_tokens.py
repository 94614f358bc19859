"""Clerk tokens and tokens of the project while a channel is open: renewed, expired, and with less access."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from scripts.local.clerk.server import Keys
from tests.realtime.conftest import Client, Server

NOTES = {"event": "*", "schema": "probe", "table": "notes"}


def renew(client: Client, name: str, token: object) -> None:
    """Sends a token, which gets no reply, and waits until the server has handled it."""
    client.send(f"realtime:{name}", "access_token", {"access_token": token})
    client.ask("phoenix", "heartbeat", {})


def join_refusal(client: Client, token: str) -> str:
    reply = client.join("room", token=token)
    assert reply["status"] == "error"
    return str(reply["response"]["reason"])


def test_clerk_tokens_are_verified_by_the_public_keys(server: Server, version: int) -> None:
    client = server.client(server.clerk_token("user_ada"), version=version)
    client.subscribe("db", NOTES)
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ben'), (2, 'user_ada')")
    assert client.change("db")["record"]["id"] == 2


def test_an_invalid_token_is_refused_with_its_reason(server: Server) -> None:
    client = server.client()
    assert join_refusal(client, "nonsense") == "MalformedJWT: The token provided is not a valid JWT"
    assert join_refusal(client, server.clerk_token("user_ada", lifetime=-7)) in {
        f"InvalidJWTToken: Token has expired {age} seconds ago" for age in (6, 7, 8)
    }
    assert join_refusal(client, server.clerk_token("user_ada", role="no_such_role")) == (
        "InvalidJWTToken: Fields `role` and `exp` are required in JWT"
    )


@pytest.mark.parametrize(
    "claims",
    [
        *({"iss": "https://clerk.example.com"}, {"aud": "another"}, {"jti": 5}),
        *({"sub": None}, {"sub": 5}, {"sub": ["user_ada"]}, {"nbf": 4_102_444_800}, {"iat": 4_102_444_800}),
    ],
    ids=str,
)
def test_only_the_signature_role_and_expiry_are_checked(server: Server, claims: dict[str, object]) -> None:
    client = server.client(server.clerk_token(**({"sub": "user_ada"} | claims)))
    assert client.join("room")["status"] == "ok"
    assert client.join("own:user_ben", private=True)["status"] == "error"


def test_an_expired_token_has_no_leeway(server: Server) -> None:
    assert join_refusal(server.client(), server.clerk_token("user_ada", lifetime=-2)).startswith(
        "InvalidJWTToken: Token has expired"
    )


def test_a_clerk_token_with_the_role_service_role_passes_every_policy(server: Server) -> None:
    """As on hosted Supabase, where service_role bypasses row level security: docs/deploy.md warns about it."""
    client = server.client(server.clerk_token("user_ada", role="service_role"))
    assert client.join("own:user_ben", private=True)["status"] == "ok"


def test_a_token_of_another_clerk_instance_is_refused(server: Server, tmp_path: Path) -> None:
    claims = {
        "role": "authenticated",
        "exp": int(time.time()) + 60,
        "iss": server.stack.environment()["CLERK_ISSUER"],
        "sub": "user_ada",
    }
    other_keys = Keys(tmp_path)
    assert join_refusal(server.client(), other_keys.sign(claims)).startswith("JwtSignatureError")
    same_name = jwt.encode(claims, other_keys.private, "RS256", headers={"kid": server.clerk.keys.id})
    assert join_refusal(server.client(), same_name) == "JwtSignatureError: Failed to validate JWT signature"


def test_a_token_signed_with_the_public_key_is_refused(server: Server) -> None:
    """The known confusion of HS256 and RS256: the public key is used as the secret of HS256."""
    public = str(server.clerk.keys.jwks["keys"][0]["n"])
    forged = jwt.encode(
        {"role": "service_role", "exp": int(time.time()) + 60}, public, "HS256", headers={"kid": server.clerk.keys.id}
    )
    assert join_refusal(server.client(), forged) == "JwtSignatureError: Failed to validate JWT signature"
    unsigned = jwt.encode({"role": "service_role", "exp": int(time.time()) + 60}, None, "none")
    assert join_refusal(server.client(), unsigned) in {
        "JwtSignatureError: Failed to validate JWT signature", "MalformedJWT: The token provided is not a valid JWT",
    }  # fmt: skip


def test_a_join_with_an_api_key_uses_the_token_of_the_connection(server: Server) -> None:
    assert server.client().join("room", token="sb_publishable_anything")["status"] == "ok"


def test_a_channel_is_closed_when_its_token_expires(server: Server, version: int) -> None:
    client = server.client(server.clerk_token("user_ada", lifetime=2), version=version)
    client.join("room")
    system = client.event("system", "room")
    assert (system["extension"], system["status"]) == ("system", "error")
    assert system["message"].startswith("Token has expired")
    client.event("phx_close", "room")
    assert client.ask("phoenix", "heartbeat", {})["status"] == "ok"


def test_a_renewed_token_keeps_the_channel_open_with_the_new_claims(server: Server) -> None:
    client = server.client(server.clerk_token("user_ada", lifetime=3))
    client.subscribe("db", NOTES)
    renew(client, "db", server.clerk_token("user_ben"))
    assert client.event("system", "db")["message"] == "Subscribed to PostgreSQL"
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada'), (2, 'user_ben')")
    assert client.change("db")["record"]["id"] == 2
    short = server.client(server.clerk_token("user_ada", lifetime=1))
    short.join("room")
    short.event("phx_close", "room")  # by now the first token of `client` has expired too
    short.join("later", token=server.clerk_token("user_ada", lifetime=2))
    short.event("phx_close", "later")
    assert client.unread("phx_close") == []
    assert client.ask("realtime:db", "phx_leave", {})["status"] == "ok"


@pytest.mark.parametrize("token", [None, 7, "sb_publishable_x", "the same"])
def test_an_unusable_or_equal_token_changes_nothing(server: Server, token: object) -> None:
    own = server.project_token(sub="user_ada")
    client = server.client(own)
    client.subscribe("db", NOTES)
    renew(client, "db", own if token == "the same" else token)
    assert client.unread("system") == []
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert client.change("db")["record"]["id"] == 1


def test_renewal_with_an_invalid_token_closes_the_channel(server: Server) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    client.join("room")
    renew(client, "room", server.project_token(sub="user_ada", lifetime=-3))
    assert client.event("system", "room")["message"] in {f"Token has expired {age} seconds ago" for age in (2, 3, 4)}
    client.event("phx_close", "room")


def test_renewal_with_a_token_that_may_not_read_closes_the_channel(server: Server) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    client.join("own:user_ada", private=True)
    renew(client, "own:user_ada", server.project_token(sub="user_ben"))
    assert client.event("system", "own:user_ada")["message"] == (
        "You no longer have permission to read from this Channel topic: own:user_ada"
    )
    client.event("phx_close", "own:user_ada")
    server.sql("select realtime.send('{}', 'said', 'own:user_ada')")
    client.join("own:user_ben", private=True, token=server.project_token(sub="user_ben"))
    server.sql("select realtime.send('{}', 'marker', 'own:user_ben')")
    client.broadcast("own:user_ben")
    assert client.unread("broadcast") == []


def test_renewal_checks_again_what_may_be_sent(server: Server) -> None:
    server.sql("create policy ada_only on realtime.messages as restrictive for insert to authenticated "
               "with check (current_setting('request.jwt.claims')::jsonb ->> 'sub' = 'user_ada')")  # fmt: skip
    try:
        client = server.client(server.project_token(sub="user_ada"))
        client.join("write:1", private=True)
        track = {"event": "track", "payload": {}}
        assert client.ask("realtime:write:1", "presence", track)["status"] == "ok"
        renew(client, "write:1", server.project_token(sub="user_ben"))
        assert client.ask("realtime:write:1", "presence", track)["status"] == "error"
    finally:
        server.sql("drop policy ada_only on realtime.messages")


def test_a_channel_that_closes_during_a_check_leaves_the_room(server: Server) -> None:
    server.sql(
        "create policy slow on realtime.messages as restrictive for insert to authenticated with check (pg_sleep(1)::text is not null)"
    )
    try:
        client = server.client(server.clerk_token("user_ada", lifetime=2))
        presence = {"enabled": True, "key": "ada"}
        client.join("write:1", private=True, presence=presence)
        client.send("realtime:write:1", "presence", {"event": "track", "payload": {}})
        client.event("phx_close", "write:1")
        client.ask("phoenix", "heartbeat", {})  # messages of a client are handled in order, so the track is done
        other = server.client(server.project_token(sub="user_ben"))
        other.join("write:1", private=True, presence=presence | {"key": "ben"})
        assert other.event("presence_state", "write:1") == {}
    finally:
        server.sql("drop policy slow on realtime.messages")
