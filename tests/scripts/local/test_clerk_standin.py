"""The Clerk stand-in behaves as Clerk: keys, version 2 tokens, complete events, Svix's signatures and retries."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import jwt
import psycopg
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from standardwebhooks import Webhook

from scripts.local.clerk.directory import Directory, IncompleteData
from scripts.local.clerk.server import ClerkStandIn, svix
from tests.conftest import Stack


def _issue_token(stack: Stack, *options: str) -> dict[str, Any]:
    result = stack.ballast("token", "--json", *options)
    assert result.returncode == 0, result.stderr
    issued: dict[str, Any] = json.loads(result.stdout)
    return issued


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_verifies_with_the_published_key(stack: Stack) -> None:
    issuer = stack.environment["CLERK_ISSUER"]
    token = _issue_token(stack, "--user", "user_ada", "--org", "org_acme")["token"]
    key = jwt.PyJWKClient(f"{issuer}/.well-known/jwks.json").get_signing_key_from_jwt(token)
    required = ["azp", "exp", "fva", "iat", "iss", "jti", "nbf", "sid", "sts", "sub", "v"]
    claims = jwt.decode(token, key, algorithms=["RS256"], issuer=issuer, options={"require": required})
    assert claims["sub"] == "user_ada"
    assert claims["v"] == 2
    assert claims["role"] == "authenticated"
    assert claims["sts"] == "active"
    assert claims["exp"] - claims["iat"] == 60
    assert claims["iat"] - claims["nbf"] == 5
    assert claims["azp"] == stack.environment["SERVICE_URL"]


def test_the_organization_claim_has_the_role_without_prefix_and_no_system_permissions(stack: Stack) -> None:
    claims = _issue_token(stack, "--user", "user_dee", "--org", "org_acme")["claims"]
    assert claims["o"] == {"id": "org_acme", "slg": "acme", "rol": "viewer", "per": "read", "fpm": "1"}
    assert claims["fea"] == "o:projects"


def test_without_an_active_organization_there_is_no_organization_claim(stack: Stack) -> None:
    assert "o" not in _issue_token(stack, "--user", "user_ada")["claims"]


def test_the_second_factor_is_verified_by_default(stack: Stack) -> None:
    assert _issue_token(stack, "--user", "user_ada")["claims"]["fva"] == [0, 0]
    assert _issue_token(stack, "--user", "user_ada", "--no-second-factor")["claims"]["fva"] == [0, -1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--user", "user_unknown"], "has no user user_unknown"),
        (["--user", "user_ada", "--org", "org_nowhere"], "has no organization org_nowhere"),
        (["--user", "user_eve", "--org", "org_acme"], "user_eve is not a member of org_acme"),
    ],
)
def test_no_token_is_issued_for_objects_that_do_not_exist(stack: Stack, options: list[str], complaint: str) -> None:
    result = stack.ballast("token", *options)
    assert result.returncode == 1
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


# --- events ----------------------------------------------------------------------------------------------------------


def test_a_user_of_a_sent_event_can_sign_in_at_once(stack: Stack) -> None:
    sent = stack.ballast("clerk", "send", "user.created", "--data", '{"id": "user_yuki"}', "--message-id", "msg_yuki_1")
    assert (sent.returncode, sent.stdout) == (0, "user.created msg_yuki_1: processed\n")
    again = stack.ballast(
        "clerk", "send", "user.created", "--data", '{"id": "user_yuki"}', "--message-id", "msg_yuki_1"
    )
    assert (again.returncode, again.stdout) == (0, "user.created msg_yuki_1: duplicate\n")
    membership = '{"organization": {"id": "org_globex"}, "public_user_data": {"user_id": "user_yuki"}}'
    assert stack.ballast("clerk", "send", "organizationMembership.created", "--data", membership).returncode == 0
    assert _issue_token(stack, "--user", "user_yuki", "--org", "org_globex")["claims"]["o"]["rol"] == "member"
    assert stack.ballast("clerk", "send", "user.deleted", "--data", '{"id": "user_yuki"}').returncode == 0
    assert stack.ballast("token", "--user", "user_yuki").returncode == 1


def test_data_is_read_from_a_file(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "event.json"
    file.write_text(json.dumps({"object": "event", "data": {"object": "thing", "id": "thing_1"}}))
    sent = stack.ballast("clerk", "send", "thing.made", "--data", f"@{file}", "--json")
    assert json.loads(sent.stdout)["outcome"] == "ignored"


def _send(stack: Stack, *words: str) -> tuple[int, str, str]:
    sent = stack.ballast("clerk", "send", *words)
    return sent.returncode, sent.stdout.rpartition(": ")[2].strip(), sent.stderr


def test_an_event_that_fails_is_printed_with_its_reason_and_fails_the_command(stack: Stack) -> None:
    data = ("--data", '{"id": "orginv_x", "email_address": "x@y.example", "organization_id": 7}')
    event = ("organizationInvitation.created", *data, "--message-id", "msg_failed")
    code, outcome, stderr = _send(stack, *event)
    assert (code, outcome) == (1, "failed")
    assert "the invitation has no organization id" in stderr
    assert "ballast inbox retry msg_failed" in stderr
    answer = json.loads(stack.ballast("clerk", "send", *event, "--json").stdout)
    assert answer["outcome"] == "failed"
    assert "the invitation has no organization id" in answer["reason"]
    assert _send(stack, "organizationInvitation.revoked", *data)[1] == "processed"  # others compare with the stand-in
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("delete from app.webhook_events where message_id = 'msg_failed'")


def test_data_that_the_stand_in_cannot_read_is_not_reported_as_its_absence(stack: Stack) -> None:
    code, _, stderr = _send(stack, "role.created", "--data", '{"id": "role_x", "key": 7}')
    assert code == 1
    assert "The Clerk stand-in failed with 500. Check the data" in stderr


def test_an_event_that_changes_nothing_is_printed_with_its_reason(stack: Stack) -> None:
    code, outcome, stderr = _send(stack, "thing.made", "--data", '{"id": "thing_2"}', "--message-id", "msg_thing_2")
    assert (code, outcome) == (0, "ignored")
    assert "Ballast applies no thing.made events" in stderr
    code, outcome, stderr = _send(stack, "thing.made", "--data", '{"id": "thing_2"}', "--message-id", "msg_thing_2")
    assert (code, outcome) == (0, "duplicate")
    assert "msg_thing_2 arrived before, and was ignored" in stderr
    gone = ("user.deleted", "--data", '{"id": "user_gone"}')
    assert _send(stack, *gone)[1] == "processed"
    code, outcome, stderr = _send(stack, *gone, "--timestamp", "1767603600000")
    assert (code, outcome) == (0, "stale")
    assert "as new as this event, or newer" in stderr


@pytest.mark.parametrize("data", ["{", "[]", "@/nowhere"])
def test_data_that_is_not_an_object_is_a_usage_error(stack: Stack, data: str) -> None:
    sent = stack.ballast("clerk", "send", "user.created", "--data", data)
    assert (sent.returncode, sent.stdout) == (2, "")


@pytest.mark.parametrize("secret", ["whsec_sécret", "whsec_b3RoZX", ",", "whsec_"])
def test_a_secret_that_cannot_sign_is_a_usage_error(stack: Stack, secret: str) -> None:
    sent = Stack(stack.home, stack.environment | {"CLERK_WEBHOOK_SECRETS": secret}).ballast(
        "clerk", "send", "thing.made"
    )
    assert (sent.returncode, sent.stdout, sent.stderr.count("\n")) == (2, "", 1)
    assert "CLERK_WEBHOOK_SECRETS is not base64: copy the whole secret" in sent.stderr


def test_an_event_that_is_not_stored_fails_the_command(stack: Stack) -> None:
    other_secret = Stack(stack.home, stack.environment | {"CLERK_WEBHOOK_SECRETS": "whsec_" + "b3RoZXIgc2VjcmV0IQ=="})
    sent = other_secret.ballast("clerk", "send", "thing.made")
    assert sent.returncode == 1
    assert "401" in sent.stderr


# --- web pages -------------------------------------------------------------------------------------------------------


def test_the_list_of_people_has_their_organizations(stack: Stack) -> None:
    people = httpx.get(f"{stack.environment['CLERK_ISSUER']}/stand-in/people").json()["people"]
    ada = next(person for person in people if person["user_id"] == "user_ada")
    assert ada == {
        "user_id": "user_ada",
        "name": "Ada Winter",
        "organizations": [
            {"organization_id": "org_acme", "name": "Acme", "role": "org:admin"},
            {"organization_id": "org_globex", "name": "Globex", "role": "org:viewer"},
        ],
    }


def test_the_authorized_parties_are_the_service_and_the_origins_of_env_file(stack: Stack) -> None:
    [line] = (stack.home / ".env").read_text().splitlines()
    assert line == f"CLERK_AUTHORIZED_PARTIES={stack.other_origin}"
    assert stack.environment["CLERK_AUTHORIZED_PARTIES"] == f"{stack.environment['SERVICE_URL']},{stack.other_origin}"


@pytest.mark.parametrize("place", [0, 1])
def test_pages_of_each_authorized_party_are_served(stack: Stack, place: int) -> None:
    url = f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens"
    origin = stack.environment["CLERK_AUTHORIZED_PARTIES"].split(",")[place]
    wanted = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = httpx.options(url, headers=wanted)
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Headers"] == "content-type"
    issued = httpx.post(url, json={"user_id": "user_ada"}, headers={"Origin": origin})
    refused = httpx.post(url, json={"user_id": "user_unknown"}, headers={"Origin": origin})
    assert (issued.status_code, refused.status_code) == (200, 404)
    for answer in (preflight, issued, refused):
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers
    assert issued.json()["claims"]["azp"] == origin


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "http://localhost:51730"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", "tokens"), ("POST", "tokens"), ("POST", "events"), ("GET", "people")]
)
def test_pages_of_other_origins_are_refused(stack: Stack, origin: str, method: str, path: str) -> None:
    url = f"{stack.environment['CLERK_ISSUER']}/stand-in/{path}"
    answer = httpx.request(method, url, json={"user_id": "user_ada"}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Host": "evil.example"}]
)
def test_a_form_or_another_host_name_cannot_mint_tokens(stack: Stack, headers: dict[str, str]) -> None:
    url = f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens"
    assert httpx.post(url, content=b'{"user_id": "user_ada"}', headers=headers).status_code == 403


# --- the Backend API -------------------------------------------------------------------------------------------------

KEY = "sk_test_key"
NOTHING: dict[str, str] = {}


def _backend(stack: Stack, method: str, user_id: str, **request: Any) -> httpx.Response:
    """The response of the Backend API to a request with the secret key."""
    headers = {"Authorization": f"Bearer {stack.environment['CLERK_SECRET_KEY']}"}
    url = f"{stack.environment['CLERK_API_URL']}/v1/users/{user_id}"
    return httpx.request(method, url, **({"headers": headers} | request))


def _new_user(stack: Stack) -> str:
    user_id = f"user_{secrets.token_hex(8)}"
    sent = stack.ballast("clerk", "send", "user.created", "--data", json.dumps({"id": user_id}))
    assert sent.returncode == 0, sent.stderr
    return user_id


def _wait_until_named(stack: Stack, user_id: str, expected: str | None) -> None:
    """Waits until the user's profile has the name; None waits until there is no profile."""
    deadline = time.monotonic() + 10
    found: Any = "not read"
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        while time.monotonic() < deadline:
            query = "select full_name from public.profiles where clerk_user_id = %s"
            row = connection.execute(query, [user_id]).fetchone()
            found = row[0] if row else None
            if found == expected:
                return
            time.sleep(0.05)
    pytest.fail(f"{user_id} should be {expected}, but is {found}")


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (NOTHING, "authorization_header_format_invalid"),
        ({"Authorization": "sk_test_ü"}, "authorization_header_format_invalid"),
        ({"Authorization": "Bearer sk_test_wrong"}, "clerk_key_invalid"),
        ({"Authorization": "Bearer sk_test_ü"}, "clerk_key_invalid"),
    ],
)
def test_without_the_secret_key_the_backend_api_does_nothing(
    stack: Stack, method: str, headers: dict[str, str], code: str
) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    answer = _backend(stack, method, "user_ada", headers=encoded, json={"first_name": "Eve"})
    assert answer.status_code == 401
    assert answer.json().keys() == {"errors", "clerk_trace_id"}
    [error] = answer.json()["errors"]
    assert error.keys() == {"message", "long_message", "code"}
    assert error["code"] == code


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_the_backend_api_reports_an_unknown_user(stack: Stack, method: str) -> None:
    answer = _backend(stack, method, "user_unknown", json={})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "resource_not_found")


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "PATCH", "DELETE"])
def test_the_backend_api_refuses_web_pages(stack: Stack, method: str) -> None:
    headers = {"Authorization": f"Bearer {stack.environment['CLERK_SECRET_KEY']}", "Origin": "https://evil.example"}
    assert _backend(stack, method, "user_unknown", headers=headers).status_code == 403


def test_a_user_is_returned_with_all_fields(stack: Stack) -> None:
    user = _backend(stack, "GET", "user_ada").json()
    assert (user["object"], user["id"], user["first_name"], user["last_name"]) == ("user", "user_ada", "Ada", "Winter")
    assert user["email_addresses"][0]["id"] == user["primary_email_address_id"]


def test_a_webhook_renames_a_renamed_user_in_the_database(stack: Stack) -> None:
    user_id = _new_user(stack)
    before = _backend(stack, "GET", user_id).json()
    renamed = _backend(stack, "PATCH", user_id, json={"first_name": "Zoë", "last_name": "Nowak"}).json()
    changed = {"first_name": "Zoë", "last_name": "Nowak", "updated_at": renamed["updated_at"]}
    assert renamed == before | changed
    assert renamed["updated_at"] > before["updated_at"]
    assert _backend(stack, "GET", user_id).json() == renamed
    _wait_until_named(stack, user_id, "Zoë Nowak")


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        ("", 400, "request_body_invalid"),
        ("[]", 400, "request_body_invalid"),
        ('{"first_name": 5}', 422, "form_param_type_invalid"),
        ('{"first_name": "Eve", "nickname": "E"}', 422, "form_param_unknown"),
    ],
)
def test_an_invalid_change_changes_nothing(stack: Stack, content: str, status: int, code: str) -> None:
    answer = _backend(stack, "PATCH", "user_ada", content=content)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (status, code)
    assert _backend(stack, "GET", "user_ada").json()["first_name"] == "Ada"


def test_a_webhook_deletes_a_deleted_user_from_the_database(stack: Stack) -> None:
    user_id = _new_user(stack)
    _wait_until_named(stack, user_id, user_id.removeprefix("user_").title())
    answer = _backend(stack, "DELETE", user_id)
    assert (answer.status_code, answer.json()) == (200, {"object": "user", "id": user_id, "deleted": True})
    _wait_until_named(stack, user_id, None)
    assert _backend(stack, "DELETE", user_id).status_code == 404
    assert stack.ballast("token", "--user", user_id).returncode == 1


async def _serve(application: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def _with_zoe(folder: Path, receive: Handler, act: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Runs a stand-in that has Zoe, a member of Acme, and delivers webhooks to `receive`. Stops it after `act`."""

    async def run() -> None:
        receiving = web.Application()
        receiving.router.add_post("/", receive)
        receiver, url = await _serve(receiving)
        stand_in = ClerkStandIn(folder, "", [""], svix.Endpoint(f"{url}/", "whsec_plJ3nmyCDGBKInavdOK15jsl"), KEY)
        pair = {"organization": {"id": "org_acme"}, "public_user_data": {"user_id": "user_zoe"}}
        for event_type, data in (("user.created", {"id": "user_zoe"}), ("organizationMembership.created", pair)):
            stand_in.event(event_type, data)
        clerk, address = await _serve(stand_in.application())
        try:
            async with aiohttp.ClientSession(address, headers={"Authorization": f"Bearer {KEY}"}) as session:
                await act(session)
        finally:
            await clerk.cleanup()
            await receiver.cleanup()

    asyncio.run(run())


def test_a_deletion_sends_an_event_for_the_user_and_for_each_membership(tmp_path: Path) -> None:
    received: list[dict[str, Any]] = []
    is_complete = asyncio.Event()

    async def receive(request: web.Request) -> web.Response:
        headers = {name.lower().replace("svix", "webhook"): value for name, value in request.headers.items()}
        body = await request.text()
        Webhook("whsec_plJ3nmyCDGBKInavdOK15jsl").verify(body, headers)
        received.append(json.loads(body))
        if len(received) == 2:
            is_complete.set()
        return web.Response()

    async def act(session: aiohttp.ClientSession) -> None:
        async with session.delete("/v1/users/user_zoe") as answer:
            assert answer.status == 200
        await asyncio.wait_for(is_complete.wait(), 10)

    _with_zoe(tmp_path, receive, act)
    data = {event["type"]: event["data"] for event in received}
    assert data["user.deleted"] == {"object": "user", "id": "user_zoe", "deleted": True}
    membership = data["organizationMembership.deleted"]
    assert membership["object"] == "organization_membership"
    assert membership["public_user_data"]["user_id"] == "user_zoe"
    assert membership["organization"]["id"] == "org_acme"


def test_a_change_does_not_wait_for_its_webhook_which_ends_with_the_stand_in(tmp_path: Path) -> None:
    async def receive(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def act(session: aiohttp.ClientSession) -> None:
        async with session.patch("/v1/users/user_zoe", json={"first_name": "Zoë"}) as answer:
            assert (await answer.json())["first_name"] == "Zoë"
        await asyncio.sleep(0.1)  # until the webhook is being delivered

    began = time.monotonic()
    _with_zoe(tmp_path, receive, act)
    assert time.monotonic() - began < 5


# --- the directory ---------------------------------------------------------------------------------------------------


def test_missing_fields_of_an_event_are_added() -> None:
    directory = Directory()
    user = directory.complete("user.created", {"id": "user_zoe"})
    directory.apply("user.created", user)
    organization = directory.complete("organization.created", {"id": "org_new_co", "created_by": "user_zoe"})
    directory.apply("organization.created", organization)
    pair = {"organization": {"id": "org_new_co"}, "public_user_data": {"user_id": "user_zoe"}}
    membership = directory.complete("organizationMembership.created", pair)
    assert user["email_addresses"][0]["email_address"] == "zoe@example.com"
    assert user["primary_email_address_id"] == user["email_addresses"][0]["id"]
    assert (organization["name"], organization["slug"]) == ("New Co", "new-co")
    assert membership["organization"] == organization
    assert membership["public_user_data"]["identifier"] == "zoe@example.com"
    assert membership["id"].startswith("orgmem_")
    assert directory.complete("organization.deleted", {"id": "org_new_co"})["slug"] == "new-co"


def test_a_change_is_always_newer_than_the_previous_one() -> None:
    directory = Directory()
    future = int(time.time() * 1000) + 1_000_000
    directory.apply("user.created", directory.complete("user.created", {"id": "user_zoe", "updated_at": future}))
    assert directory.complete("user.updated", {"id": "user_zoe"})["updated_at"] > future


def test_older_events_and_events_of_deleted_objects_are_not_applied() -> None:
    directory = Directory()
    user = directory.complete("user.created", {"id": "user_zoe", "first_name": "Zoe"})
    directory.apply("user.updated", user)
    directory.apply("user.updated", user | {"first_name": "Old", "updated_at": user["updated_at"] - 1})
    assert directory.user("user_zoe")["first_name"] == "Zoe"
    directory.apply("user.deleted", {"id": "user_zoe"})
    directory.apply("user.updated", user)
    assert directory.users == {}


def test_a_membership_has_the_new_name_of_its_user() -> None:
    directory = Directory()
    pair = {
        "organization": {"id": "org_acme"},
        "public_user_data": {"user_id": "user_zoe", "identifier": "z@example.com"},
    }
    for event_type, data in (
        ("user.created", {"id": "user_zoe"}),
        ("organizationMembership.created", pair),
        ("user.updated", {"id": "user_zoe", "first_name": "Zoë", "last_name": "Nowak"}),
    ):
        directory.apply(event_type, directory.complete(event_type, data))
    [membership] = directory.memberships_of("user_zoe")
    public = membership["public_user_data"]
    assert (public["first_name"], public["last_name"], public["identifier"]) == ("Zoë", "Nowak", "zoe@example.com")


def test_an_event_without_a_required_id_is_refused() -> None:
    for event_type in ("user.deleted", "organizationMembership.created", "organizationInvitation.created"):
        with pytest.raises(IncompleteData):
            Directory().complete(event_type, {})


def test_a_directory_outlives_its_process(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "directory.json")
    directory.apply("user.created", directory.complete("user.created", {"id": "user_zoe"}))
    assert Directory(tmp_path / "directory.json").users == directory.users


# --- Svix ------------------------------------------------------------------------------------------------------------


def test_signatures_match_the_published_example_of_svix() -> None:
    headers = svix.sign_headers(
        "whsec_plJ3nmyCDGBKInavdOK15jsl",
        "msg_loFOjxBNrRLzqYUf",
        b'{"event_type":"ping","data":{"success":true}}',
        datetime.fromtimestamp(1731705121, UTC),
    )
    assert headers["svix-signature"] == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
    assert headers["svix-timestamp"] == "1731705121"


def test_signatures_cover_the_sent_body() -> None:
    secret, body = "whsec_plJ3nmyCDGBKInavdOK15jsl", svix.encode_body({"data": {"name": "Zoë"}})
    headers = {name.replace("svix", "webhook"): each for name, each in svix.sign_headers(secret, "m", body).items()}
    Webhook(secret).verify(body, headers)


def _deliver_to(statuses: Iterable[int]) -> tuple[list[int | None], list[tuple[float, str, str]]]:
    """Delivers a message to a receiver that answers with these statuses, with pauses a million times shorter."""
    remaining = list(statuses)
    received: list[tuple[float, str, str]] = []

    async def receive(request: web.Request) -> web.Response:
        received.append((time.monotonic(), request.headers["svix-id"], request.headers["svix-signature"]))
        return web.Response(status=remaining.pop(0), headers={"Location": "/elsewhere"})

    async def run() -> list[int | None]:
        application = web.Application()
        application.router.add_post("/", receive)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [address] = runner.addresses
        endpoint = svix.Endpoint(f"http://127.0.0.1:{address[1]}/", "whsec_plJ3nmyCDGBKInavdOK15jsl")
        try:
            async with aiohttp.ClientSession() as session:
                return [each async for each in svix.deliver(session, endpoint, "msg_1", b"{}", speed=1_000_000)]
        finally:
            await runner.cleanup()

    return asyncio.run(run()), received


def test_a_failed_delivery_is_retried_with_the_same_id_until_it_succeeds() -> None:
    statuses, received = _deliver_to([500, 302, 404, 204])
    assert statuses == [500, 302, 404, 204]
    assert {message_id for _, message_id, _ in received} == {"msg_1"}


def test_deliveries_end_after_the_retries_of_svix() -> None:
    statuses, _ = _deliver_to([500] * 9)
    assert statuses == [500] * 8
    assert svix.RETRY_PAUSES == (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600)
    assert svix.ATTEMPT_SECONDS == 15


def test_an_unreachable_receiver_is_a_failed_attempt() -> None:
    async def run() -> int | None:
        async with aiohttp.ClientSession() as session:
            endpoint = svix.Endpoint("http://127.0.0.1:9/", "whsec_plJ3nmyCDGBKInavdOK15jsl")
            return await anext(svix.deliver(session, endpoint, "msg_1", b"{}"))

    assert asyncio.run(run()) is None


def test_stop_cancels_deliveries_in_the_background() -> None:
    async def run() -> None:
        deliveries = svix.Deliveries(svix.Endpoint("http://127.0.0.1:9/", "whsec_plJ3nmyCDGBKInavdOK15jsl"))
        deliveries.begin("msg_1", b"{}")
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == 2
        await deliveries.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
