"""The Data API accepts and refuses tokens by the rules of PostgREST, which hosted Supabase uses too."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.conftest import Stack
from tests.tenant_tables import TABLES

Answer = tuple[int, str, str, str | None]
LEEWAY = 30


def mint_token(stack: Stack, **claims: Any) -> str:
    """A token of Ada from the Clerk stand-in. Claims that are None are omitted."""
    url = f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens"
    return str(httpx.post(url, json={"user_id": "user_ada", "claims": claims}).json()["token"])


def sign_by_project(stack: Stack, payload: dict[str, Any] | bytes) -> str:
    secret = json.loads((stack.home / "secrets.json").read_text())["jwt_secret"]
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jwt.PyJWS().encode(body, secret, "HS256")


def read(stack: Stack, token: str, path: str = "organizations?select=name") -> httpx.Response:
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {token}".strip()}
    return httpx.get(f"{stack.environment['SUPABASE_URL']}/rest/v1/{path}", headers=headers)


def refusal(answer: httpx.Response) -> Answer:
    body = answer.json()
    return answer.status_code, body["code"], body["message"], body["details"]


def now() -> int:
    return int(time.time())


@pytest.mark.parametrize(
    "claims",
    [
        *({"exp": -LEEWAY + 5}, {"nbf": LEEWAY - 5}, {"iat": LEEWAY - 5}, {"exp": None}, {"exp": None, "nbf": None}),
        *({"iss": "https://another.example"}, {"iss": None}, {"aud": "anything"}, {"aud": ["one", "two"]}),
    ],
    ids=str,
)
def test_a_token_signed_by_a_known_key_is_accepted(stack: Stack, claims: dict[str, Any]) -> None:
    claims = {name: now() + value if isinstance(value, int) else value for name, value in claims.items()}
    answer = read(stack, mint_token(stack, **claims))
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json() != []


@pytest.mark.parametrize("subject", [None, "user_unknown", 5, ["user_ada"], {"id": "user_ada"}, ""])
@pytest.mark.parametrize("path", [*TABLES, "profiles?select=id", "organizations", "rpc/my_permissions"])
def test_a_token_without_a_known_user_reads_nothing(stack: Stack, subject: object, path: str) -> None:
    answer = read(stack, mint_token(stack, sub=subject), path)
    assert (answer.status_code, answer.json()) == (httpx.codes.OK, [])


def test_a_token_signed_by_the_project_identifies_its_user(stack: Stack) -> None:
    answer = read(stack, sign_by_project(stack, {"sub": "user_cleo", "role": "authenticated"}))
    assert answer.json() == read(stack, stack.token("user_cleo")).json() != []


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": -LEEWAY - 5}, "JWT expired"),
        ({"nbf": LEEWAY + 5}, "JWT not yet valid"),
        ({"iat": LEEWAY + 5}, "JWT issued at future"),
        ({"exp": "soon"}, "The JWT 'exp' claim must be a number"),
        ({"nbf": [1]}, "The JWT 'nbf' claim must be a number"),
        ({"iat": True}, "The JWT 'iat' claim must be a number"),
        ({"aud": 5}, "The JWT 'aud' claim must be a string or an array of strings"),
    ],
    ids=str,
)
def test_invalid_claims_are_refused(stack: Stack, claims: dict[str, Any], message: str) -> None:
    moved = {name: now() + value if type(value) is int and name != "aud" else value for name, value in claims.items()}
    answer = read(stack, mint_token(stack, **moved))
    assert refusal(answer) == (401, "PGRST303", message, None)
    assert answer.headers["www-authenticate"] == f'Bearer error="invalid_token", error_description="{message}"'


def test_claims_that_are_not_an_object_are_refused(stack: Stack) -> None:
    for payload in (b"[]", b"null", b'"text"', b"not JSON", b"\xff"):
        answer = read(stack, sign_by_project(stack, payload))
        assert refusal(answer) == (401, "PGRST303", "Parsing claims failed", None)


@pytest.mark.parametrize(
    ("role", "answered"),
    [
        (None, (401, "42501", "permission denied for table organizations", None)),
        ("anon", (401, "42501", "permission denied for table organizations", None)),
        ("no_such_role", (401, "22023", 'role "no_such_role" does not exist', None)),
        (["authenticated"], (401, "22023", 'role "["authenticated"]" does not exist', None)),
        ("", (401, "22023", 'role "" does not exist', None)),
        ("postgres", (403, "42501", 'permission denied to set role "postgres"', None)),
        ("supabase_admin", (403, "42501", 'permission denied to set role "supabase_admin"', None)),
        ("pg_read_all_data", (403, "42501", 'permission denied to set role "pg_read_all_data"', None)),
        ("authenticator", (403, "42501", "permission denied for table organizations", None)),
    ],
    ids=str,
)
def test_a_role_that_a_token_may_not_use_is_refused(stack: Stack, role: object, answered: Answer) -> None:
    answer = read(stack, mint_token(stack, role=role))
    assert refusal(answer) == answered
    assert answer.headers.get("www-authenticate") == ("Bearer" if answer.status_code == 401 else None)


def test_the_role_null_is_treated_as_a_role_with_this_name(stack: Stack) -> None:
    answer = read(stack, sign_by_project(stack, {"sub": "user_ada", "role": None}))
    assert refusal(answer) == (401, "22023", 'role "null" does not exist', None)


def test_a_token_signed_by_an_unknown_key_is_refused(stack: Stack) -> None:
    claims = {"sub": "user_ada", "role": "authenticated"}
    [key] = httpx.get(f"{stack.environment['CLERK_ISSUER']}/.well-known/jwks.json").json()["keys"]
    kid = {"kid": key["kid"]}
    unknown_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    modulus = base64.urlsafe_b64decode(key["n"] + "==")
    header, body, signature = mint_token(stack).split(".")
    forged = base64.urlsafe_b64encode(json.dumps(claims | {"sub": "user_ben"}).encode()).rstrip(b"=").decode()
    message, none_decodes = "No suitable key or wrong key type", "None of the keys was able to decode the JWT"
    for token in (
        jwt.encode(claims, unknown_key, "RS256", headers=kid),
        jwt.encode(claims, "another secret of a sufficient length", "HS256"),
        jwt.encode(claims, modulus, "HS256"),  # the public key as a shared secret
        f"{header}.{forged}.{signature}",
        f"{header}.{body}.",
    ):
        assert refusal(read(stack, token)) == (401, "PGRST301", message, none_decodes)
    for token in (
        jwt.encode(claims, unknown_key, "RS256", headers={"kid": "ins_another"}),
        jwt.encode(claims, "another secret of a sufficient length" * 2, "HS512"),
    ):
        answered = (401, "PGRST301", message, "No suitable key was found to decode the JWT")
        assert refusal(read(stack, token)) == answered
    unsigned = jwt.encode(claims, None, "none", headers=kid)
    assert refusal(read(stack, unsigned)) == (
        401, "PGRST301", "Wrong or unsupported encoding algorithm", "JWT is unsecured but expected 'alg' was not 'none'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "Empty JWT is sent in Authorization header"),
        ("abc", "Expected 3 parts in JWT; got 1"),
        ("sb_secret_other", "Expected 3 parts in JWT; got 1"),
        ("a.b.c.d", "Expected 3 parts in JWT; got 4"),
        ("a..b", "JWT cryptographic operation failed"),
        ("garbage.garbage.garbage", "JWT cryptographic operation failed"),
    ],
)
def test_a_token_that_is_not_a_jwt_is_refused(stack: Stack, token: str, message: str) -> None:
    answer = read(stack, token)
    assert refusal(answer) == (401, "PGRST301", message, None)
    assert answer.headers["www-authenticate"] == f'Bearer error="invalid_token", error_description="{message}"'


def test_a_header_with_another_scheme_than_bearer_is_anonymous(stack: Stack) -> None:
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Authorization": "Basic YTpi"}
    answer = httpx.get(f"{stack.environment['SUPABASE_URL']}/rest/v1/organizations", headers=headers)
    assert refusal(answer) == (401, "42501", "permission denied for table organizations", None)


def call(stack: Stack, function: str, token: str, arguments: dict[str, Any]) -> httpx.Response:
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {token}"}
    return httpx.post(f"{stack.environment['SUPABASE_URL']}/rest/v1/rpc/{function}", headers=headers, json=arguments)


def test_a_clerk_token_with_the_role_service_role_is_not_the_service(stack: Stack) -> None:
    """PostgREST accepts the role; the database refuses the call."""
    token = mint_token(stack, role="service_role")
    event = {
        "message_id": "msg_forged",
        "event": '{"type": "user.deleted", "data": {"id": "user_ben", "deleted": true}}',
    }
    for function, arguments in (
        ("ready", {}),
        ("receive_clerk_event", event),
        ("begin_export", {"clerk_user_id": "user_ben"}),
    ):
        answer = call(stack, function, token, arguments)
        assert refusal(answer)[:2] == (403, "42501")
        assert answer.json()["message"] == "Only the secret key may call this function, not a Clerk token."
    for table in ("profiles", "organizations", "audit_logs", "backup_logs", "role_permissions"):
        assert refusal(read(stack, token, table)) == (403, "42501", f"permission denied for table {table}", None)


def test_a_project_token_with_the_role_service_role_is_the_service(stack: Stack) -> None:
    claims = {"iss": "supabase", "ref": "abcdefghijklmnopqrst", "role": "service_role", "iat": now(), "exp": now() + 60}
    assert call(stack, "ready", sign_by_project(stack, claims), {}).json() is True
