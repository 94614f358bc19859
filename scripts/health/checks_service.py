"""Whether the service and Redis answer, to callers with the right secrets only."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook

from scripts.health.context import TIMEOUT, CheckFailed, Context, parse_json, read_error_message

PING_TYPE = "ballast.ping"


def check_service(context: Context) -> str:
    """/readyz answers 200."""
    answer = httpx.get(f"{_read_service_url(context)}/readyz", timeout=TIMEOUT)
    if answer.is_success:
        return "It answers, and reaches the database and Redis."
    raise CheckFailed(
        f"/readyz answers {answer.status_code}: {read_error_message(answer)}",
        "See that SERVICE_URL is the service's, and its log for what it does not reach.",
    )


def check_webhook_secrets(context: Context) -> str:
    """An event signed with each secret is stored and ignored, one signed with another is refused."""
    url = f"{_read_service_url(context)}/webhooks/clerk"
    signing = context.list_items("CLERK_WEBHOOK_SECRETS")
    for number, secret in enumerate(signing, 1):
        answer = _send_ping(url, secret)
        if not answer.is_success:
            raise CheckFailed(
                f"An event signed with secret {number} of {len(signing)} is answered {answer.status_code}: "
                f"{read_error_message(answer)}",
                "Give the service the CLERK_WEBHOOK_SECRETS that are set here, and start it anew. "
                "SERVICE_URL must be where the service is.",
            )
        if parse_json(answer).get("outcome") != "ignored":
            raise CheckFailed(f"{url} does not answer as the service does.", "Set SERVICE_URL to where the service is.")
    wrong = _send_ping(url, f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}")
    if wrong.status_code != httpx.codes.UNAUTHORIZED:
        raise CheckFailed(
            f"An event with a wrong signature is answered {wrong.status_code}: whoever knows the URL could write.",
            "See what stands between here and the service, and that it is Ballast's.",
        )
    return "A signed ping is accepted, a forged one refused."


def _send_ping(url: str, secret: str) -> httpx.Response:
    message_id, now = f"msg_ballast_doctor_{secrets.token_hex(8)}", datetime.now(UTC)
    event = {"type": PING_TYPE, "object": "event", "timestamp": int(now.timestamp() * 1000), "data": {}}
    body = json.dumps(event)
    try:
        base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise CheckFailed("A secret of CLERK_WEBHOOK_SECRETS is not base64.", "Copy all of it: whsec_….") from None
    headers = {
        "content-type": "application/json",
        "svix-id": message_id,
        "svix-timestamp": str(int(now.timestamp())),
        "svix-signature": Webhook(secret).sign(message_id, now, body),
    }
    return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT)


def check_jobs_token(context: Context) -> str:
    """The service knows the jobs' token, and asks for it. No job is run."""
    url, token = f"{_read_service_url(context)}/jobs/none-of-them", context["JOBS_TOKEN"]
    if httpx.post(url, timeout=TIMEOUT).status_code != httpx.codes.UNAUTHORIZED:
        raise CheckFailed("Jobs can be run without a token.", "See that SERVICE_URL is the service's.")
    answer = httpx.post(url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    if answer.status_code != httpx.codes.NOT_FOUND:
        raise CheckFailed(
            f"The service does not know JOBS_TOKEN: it answers {answer.status_code}.",
            "Give the service the same JOBS_TOKEN as here, and start it anew.",
        )
    return "JOBS_TOKEN is the service's."


def check_redis(context: Context) -> str:
    """Redis answers a PING over its REST protocol."""
    url, token = context["UPSTASH_REDIS_REST_URL"].rstrip("/"), context["UPSTASH_REDIS_REST_TOKEN"]
    answer = httpx.post(url, json=["PING"], headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    if answer.is_success and parse_json(answer).get("result") == "PONG":
        return "PONG."
    raise CheckFailed(
        f"Redis answers {answer.status_code}: {read_error_message(answer)}",
        "Copy both UPSTASH_REDIS_REST_… from Upstash's console, under REST API.",
    )


def _read_service_url(context: Context) -> str:
    return context["SERVICE_URL"].rstrip("/")
