"""`/openapi.json`: the routes as OpenAPI 3.1 describes them. Kept by hand; a test compares it with the routes."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

openapi = Blueprint("openapi", __name__)


@openapi.get("/openapi.json")
def show() -> ResponseReturnValue:
    """This document."""
    return jsonify(DOCUMENT)


def _problems(**statuses: str) -> dict[str, Any]:
    """One `{"401": {"description": …}}` for each s401="…", as problem documents."""
    return {
        status.removeprefix("s"): {
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, description in statuses.items()
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": description, "content": {"application/json": {"schema": schema}}}}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "description": description, "schema": {"type": "string"}}


def _time(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": "string", "format": "date-time"},
    }


STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Ballast",
        "version": "1",
        "description": "What SQL cannot do. Data is read and written through Supabase, not here.",
    },
    "paths": {
        "/healthz": {"get": {"summary": "Is the process alive?", "responses": _answer("It is.", STATUS)}},
        "/readyz": {
            "get": {
                "summary": "Do the database and Redis answer?",
                "responses": _answer("They do.", STATUS) | _problems(s503="One of them does not; `down` names it."),
            }
        },
        "/openapi.json": {"get": {"summary": "This document.", "responses": _answer("It.", {"type": "object"})}},
        "/webhooks/clerk": {
            "post": {
                "summary": "Receive one of Clerk's events, signed by Svix.",
                "description": "The names webhook-id, webhook-timestamp and webhook-signature serve as well.",
                "parameters": [
                    _header("svix-id", "The message's id, the same on every attempt."),
                    _header("svix-timestamp", "Seconds since 1970, within 300 s of now."),
                    _header("svix-signature", "One or more `v1,<base64>`, separated by a space."),
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Event"}}},
                },
                "responses": _answer("The event is stored.", {"$ref": "#/components/schemas/Outcome"})
                | _problems(
                    s400="Headers or body are malformed.",
                    s401="The signature is not valid.",
                    s413="The body is larger than 512 kB.",
                    s503="The event could not be stored: send it again.",
                ),
            }
        },
        "/api/v1/me": {
            "get": {
                "summary": "The caller's profile, organizations and permissions.",
                "security": [{"clerk": []}],
                "responses": _answer("The caller's session.", {"$ref": "#/components/schemas/Session"})
                | _problems(
                    s401="No token, or not a valid one.",
                    s403="The person is banned or deleted, or the session has unfinished tasks.",
                    s503="The database or Clerk does not answer.",
                ),
            }
        },
        "/api/v1/organizations/{organization_id}/audit.csv": {
            "get": {
                "summary": "The organization's audit trail as CSV, newest first.",
                "description": "A body without its last chunk is not complete: the database failed midway. Ask again.",
                "security": [{"clerk": []}],
                "parameters": [
                    {
                        "name": "organization_id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "format": "uuid"},
                    },
                    _time("from", "The first moment; 30 days before the end unless given."),
                    _time("to", "The end, which the range does not include; now unless given."),
                ],
                "responses": {
                    "200": {"description": "The entries.", "content": {"text/csv": {"schema": {"type": "string"}}}}
                }
                | _problems(
                    s400="`from` or `to` is malformed, or the range ends before it begins.",
                    s401="No token, or not a valid one.",
                    s403="The caller lacks audit:read there, or there is no such organization.",
                    s503="The database or Clerk does not answer.",
                ),
            }
        },
    },
    "components": {
        "securitySchemes": {"clerk": {"type": "http", "scheme": "bearer", "bearerFormat": "Clerk session token"}},
        "schemas": {
            "Problem": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "request_id"],
                "properties": {
                    "type": {"type": "string", "format": "uri-reference"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "request_id": {"type": "string"},
                },
            },
            "Event": {
                "type": "object",
                "required": ["type", "data"],
                "properties": {"type": {"type": "string", "minLength": 1}, "data": {"type": "object"}},
            },
            "Outcome": {
                "type": "object",
                "required": ["message_id", "type", "outcome"],
                "properties": {
                    "message_id": {"type": "string"},
                    "type": {"type": "string"},
                    "outcome": {"enum": ["processed", "duplicate", "stale", "ignored", "failed"]},
                },
            },
            "Session": {
                "type": "object",
                "required": ["profile", "second_factor", "organizations"],
                "properties": {
                    "profile": {"type": "object"},
                    "second_factor": {"type": "boolean"},
                    "organizations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["id", "clerk_org_id", "role", "permissions", "mfa_required", "limited_by"],
                            "properties": {
                                "id": {"type": "string", "format": "uuid"},
                                "clerk_org_id": {"type": "string"},
                                "name": {"type": ["string", "null"]},
                                "slug": {"type": ["string", "null"]},
                                "role": {"type": "string"},
                                "permissions": {"type": "array", "items": {"type": "string"}},
                                "mfa_required": {"type": "boolean"},
                                "limited_by": {"enum": [None, "second_factor"]},
                            },
                        },
                    },
                },
            },
        },
    },
}
