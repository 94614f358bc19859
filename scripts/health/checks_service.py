"""Checks that the service and Redis answer, and only to callers with valid secrets."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook

from scripts.health.context import TIMEOUT, CheckFailed, Context, join_some, parse_json, read_error_message
from service.refusals import DOCTOR_MESSAGE

PING_TYPE = "ballast.ping"


def check_service(context: Context) -> str:
    """Checks that /readyz returns 200, and that it does not report Redis as down."""
    answer = httpx.get(f"{_read_service_url(context)}/readyz", timeout=TIMEOUT)
    if answer.is_success:
        body = parse_json(answer)
        if "redis" in body.get("down", []):
            raise CheckFailed(
                "The service works, but without a cache and without limits: "
                + ("Redis hangs." if body.get("redis") == "hanging" else "it does not reach Redis."),
                "Check UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN of the service, and that Redis answers.",
            )
        return "Ready: it reaches the database and Redis."
    raise CheckFailed(
        f"/readyz returns {answer.status_code}: {read_error_message(answer)}",
        "Check SERVICE_URL. If it is right, the service's log names what it does not reach.",
    )


def check_webhook_secrets(context: Context) -> str:
    """Checks that the service accepts an event signed with each secret, and rejects one with another signature."""
    url = f"{_read_service_url(context)}/webhooks/clerk"
    signing = context.list_items("CLERK_WEBHOOK_SECRETS")
    for number, secret in enumerate(signing, 1):
        answer = _send_ping(url, secret)
        if not answer.is_success:
            raise CheckFailed(
                f"The service rejects an event with secret {number} of {len(signing)} ({answer.status_code}): "
                f"{read_error_message(answer)}",
                "Set the same CLERK_WEBHOOK_SECRETS for the service, and restart it. Check SERVICE_URL.",
            )
        if parse_json(answer).get("outcome") != "ignored":
            raise CheckFailed(
                f"{url} is not the webhook route of the service.", "Set SERVICE_URL to the service's URL."
            )
    wrong = _send_ping(url, f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}")
    if wrong.status_code != httpx.codes.UNAUTHORIZED:
        raise CheckFailed(
            f"An event with a wrong signature gets {wrong.status_code} instead of 401: anyone could send events.",
            "Check that SERVICE_URL is the service, and look for a proxy in front of it.",
        )
    return "Accepts a signed ping, rejects a forged one."


def _send_ping(url: str, secret: str) -> httpx.Response:
    message_id, now = f"{DOCTOR_MESSAGE}{secrets.token_hex(8)}", datetime.now(UTC)
    event = {"type": PING_TYPE, "object": "event", "timestamp": int(now.timestamp() * 1000), "data": {}}
    body = json.dumps(event)
    try:
        base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise CheckFailed(
            "A secret in CLERK_WEBHOOK_SECRETS is not base64.", "Copy the whole secret: whsec_…."
        ) from None
    headers = {
        "content-type": "application/json",
        "svix-id": message_id,
        "svix-timestamp": str(int(now.timestamp())),
        "svix-signature": Webhook(secret).sign(message_id, now, body),
    }
    return httpx.post(url, content=body, headers=headers, timeout=TIMEOUT)


def check_jobs(context: Context) -> str:
    """Checks that the service requires and accepts JOBS_TOKEN, and that each job has a schedule. Runs no job."""
    url, token = f"{_read_service_url(context)}/jobs", context["JOBS_TOKEN"]
    if httpx.get(url, timeout=TIMEOUT).status_code != httpx.codes.UNAUTHORIZED:
        raise CheckFailed("The URL accepts requests for jobs without a token.", "Set SERVICE_URL to the service's URL.")
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    if not answer.is_success:
        raise CheckFailed(
            f"The service rejects JOBS_TOKEN with {answer.status_code}.",
            "Set the same JOBS_TOKEN for the service, and restart it.",
        )
    jobs = parse_json(answer)
    if jobs["undeclared"]:
        raise CheckFailed(
            f"Jobs of the service that the database does not declare: {join_some(jobs['undeclared'])}.",
            "Run `ballast migrate up`, and call app.schedule_job() in a file of functions/9_tables.",
        )
    if jobs["missing"]:
        raise CheckFailed(
            f"Jobs that the database declares and the service does not have: {join_some(jobs['missing'])}.",
            "Deploy the service. If the job was removed, delete its row from app.job_schedules.",
        )
    return f"The service accepts JOBS_TOKEN, and has {len(jobs['scheduled'])} scheduled jobs."


def check_redis(context: Context) -> str:
    """Checks that Redis answers PING over its REST protocol."""
    url, token = context["UPSTASH_REDIS_REST_URL"].rstrip("/"), context["UPSTASH_REDIS_REST_TOKEN"]
    try:
        answer = httpx.post(url, json=["PING"], headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT)
    except httpx.ReadTimeout:
        raise CheckFailed(
            f"Redis hangs: it accepted the connection and did not answer for {TIMEOUT.read:.0f} seconds.",
            "Look at the load and the log of Redis, or restart it. The service works without it, but slower.",
        ) from None
    if answer.is_success and parse_json(answer).get("result") == "PONG":
        return "PONG."
    raise CheckFailed(
        f"Redis returns {answer.status_code}: {read_error_message(answer)}",
        "Copy both UPSTASH_REDIS_REST_… variables from Upstash's console, under REST API.",
    )


def _read_service_url(context: Context) -> str:
    return context["SERVICE_URL"].rstrip("/")
