"""`/openapi.json`: the routes as OpenAPI 3.1 describes them. Kept by hand; a test compares it with the routes."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service.jobs import JOBS
from service.routes.members import ROLES as INVITED_ROLES
from service.routes.personal_data import CONFIRMATION

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


def _document(content_type: str) -> dict[str, Any]:
    return {"200": {"description": "It.", "content": {content_type: {"schema": {"type": "string"}}}}}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "description": description, "schema": {"type": "string"}}


def _time(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": "string", "format": "date-time"},
    }


def _id(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}


_LINK = [
    {"name": name, "in": "query", "required": True, "schema": {"type": "string"}}
    for name in ("person", "kind", "signature")
]

STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
ALIVE = STATUS | {"properties": {"status": {"const": "ok"}, "release": {"type": "string"}}}

BACKUP: dict[str, Any] = {
    "id": {"type": "string", "format": "uuid"},
    "filename": {"type": "string"},
    "backup_type": {"enum": ["automated", "manual"]},
    "status": {"enum": ["started", "completed", "failed", "interrupted"]},
    "created_at": {"type": "string", "format": "date-time"},
}
BACKUP_END: dict[str, Any] = {
    "size_bytes": {"type": ["integer", "null"]},
    "duration_seconds": {"type": ["number", "null"]},
    "checksum": {"type": ["string", "null"], "description": "SHA-256 of the stored dump, in hexadecimal."},
    "error_message": {"type": ["string", "null"]},
    "drilled_at": {"type": ["string", "null"], "format": "date-time"},
    "drill_passed": {"type": ["boolean", "null"]},
}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Ballast",
        "version": "1",
        "description": "What SQL cannot do. Data is read and written through Supabase, not here. RateLimit-Limit, "
        "RateLimit-Remaining and RateLimit-Reset (in seconds) say how much is left of a limit.",
    },
    "paths": {
        "/healthz": {"get": {"summary": "Is the process alive?", "responses": _answer("It is: this release.", ALIVE)}},
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
        "/api/v1/organizations/{organization_id}/invitations": {
            "post": {
                "summary": "Have Clerk invite somebody to the organization.",
                "description": "Takes members:invite. Clerk sends the e-mail and tells of the invitation by a webhook.",
                "security": [{"clerk": []}],
                "parameters": [_id("organization_id")],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Invitation"}}},
                },
                "responses": {"202": _answer("Clerk has it.", {"$ref": "#/components/schemas/InvitationSent"})["200"]}
                | _problems(
                    s400="The body is not an invitation.",
                    s401="No token, or not a valid one.",
                    s403="The caller lacks members:invite there; `limited_by` says whether a second factor would help.",
                    s404="The path's id is no UUID.",
                    s422="Clerk refuses it; `clerk_code` says why.",
                    s503="The database or Clerk does not answer.",
                ),
            }
        },
        "/api/v1/organizations/{organization_id}/members/{profile_id}": {
            "delete": {
                "summary": "Have Clerk end somebody's membership.",
                "description": "Takes members:remove; only an owner removes an owner. The webhook ends the access.",
                "security": [{"clerk": []}],
                "parameters": [_id("organization_id"), _id("profile_id")],
                "responses": {"204": {"description": "Clerk has ended it."}}
                | _problems(
                    s401="No token, or not a valid one.",
                    s403="The caller lacks members:remove there, or the member is an owner and the caller is none.",
                    s404="There is no such member.",
                    s409="The organization would be without an owner.",
                    s422="Clerk refuses it; `clerk_code` says why.",
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
                    _id("organization_id"),
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
                    s404="The path's id is no UUID.",
                    s503="The database or Clerk does not answer.",
                ),
            }
        },
        "/api/v1/gdpr/export": {
            "get": {
                "summary": "All that is held of the caller, as a file.",
                "description": "A body without its last chunk is not complete: the database failed midway. Ask again.",
                "security": [{"clerk": []}],
                "responses": {
                    "200": {
                        "description": "An array per kind of record; or, where it is accepted rather, a ZIP of such.",
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Export"}},
                            "application/zip": {"schema": {"type": "string", "format": "binary"}},
                        },
                    }
                }
                | _problems(
                    s401="No token, or not a valid one.",
                    s403="Somebody acts in the person's name, or the session has unfinished tasks.",
                    s404="Nothing is held of the person.",
                    s429="There is one export an hour; Retry-After says when the next may be asked for.",
                    s503="The database or Clerk does not answer.",
                ),
            }
        },
        "/api/v1/gdpr/erasure": {
            "post": {
                "summary": "Erase the caller, here and at Clerk, for good.",
                "description": "Hidden at once, erased within moments. Asked again, it answers with the same receipt.",
                "security": [{"clerk": []}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Confirmation"}}},
                },
                "responses": {"202": _answer("It has begun.", {"$ref": "#/components/schemas/Receipt"})["200"]}
                | _problems(
                    s400="The confirmation is missing.",
                    s401="No token, or not a valid one.",
                    s403="The first factor is older than ten minutes, or somebody acts in the person's name.",
                    s404="Nothing is held of the person.",
                    s409="The caller is the only owner of `organizations`.",
                    s503="The database or Clerk does not answer.",
                ),
            }
        },
        "/api/v1/gdpr/erasure/{receipt}": {
            "get": {
                "summary": "How far an erasure is. The receipt is enough.",
                "parameters": [
                    {
                        "name": "receipt",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "format": "uuid"},
                    }
                ],
                "responses": _answer("The erasure.", {"$ref": "#/components/schemas/Receipt"})
                | _problems(s404="There is no such receipt.", s503="The database does not answer."),
            }
        },
        "/api/v1/backups": {
            "post": {
                "summary": "Start a backup, for operators.",
                "description": "It is made after this is answered: GET tells how it ends.",
                "security": [{"operator": []}],
                "responses": {"202": _answer("It has begun.", {"$ref": "#/components/schemas/BackupBegun"})["200"]}
                | _problems(
                    s401="Not the operator's token.",
                    s409="A backup is running.",
                    s503="The database does not answer, or the variables in `missing` are not set.",
                ),
            },
            "get": {
                "summary": "The newest hundred backups, newest first, for operators.",
                "security": [{"operator": []}],
                "responses": _answer(
                    "The backups.",
                    {
                        "type": "object",
                        "required": ["backups"],
                        "properties": {"backups": {"type": "array", "items": {"$ref": "#/components/schemas/Backup"}}},
                    },
                )
                | _problems(s401="Not the operator's token.", s503="The database does not answer."),
            },
        },
        "/webhooks/resend": {
            "post": {
                "summary": "Receive what became of a mail, signed by Resend's Svix.",
                "parameters": [
                    _header("svix-id", "The message's id, the same on every attempt."),
                    _header("svix-timestamp", "Seconds since 1970, within 300 s of now."),
                    _header("svix-signature", "One or more `v1,<base64>`, separated by a space."),
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Event"}}},
                },
                "responses": _answer(
                    "It is noted, or ignored.",
                    {
                        "type": "object",
                        "required": ["outcome"],
                        "properties": {"outcome": {"enum": ["processed", "ignored"]}},
                    },
                )
                | _problems(
                    s400="Headers or body are malformed.",
                    s401="The signature is not valid, or RESEND_WEBHOOK_SECRET is not set.",
                    s413="The body is larger than 512 kB.",
                    s503="The event could not be stored: send it again.",
                ),
            }
        },
        "/mail/unsubscribe": {
            "get": {
                "summary": "The page that a mail's link opens: it asks first.",
                "parameters": _LINK,
                "responses": _document("text/html") | _problems(s403="The link is not one of ours."),
            },
            "post": {
                "summary": "No more mail of this kind: the page's button, or the mail program's own (RFC 8058).",
                "parameters": _LINK,
                "responses": _document("text/html")
                | _problems(s403="The link is not one of ours.", s503="The database does not answer."),
            },
        },
        "/legal/privacy": {
            "get": {
                "summary": "The privacy page, made from the registry of personal data.",
                "responses": _document("text/html") | _problems(s503="The database does not answer."),
            }
        },
        "/legal/terms": {"get": {"summary": "The terms of service.", "responses": _document("text/html")}},
        "/legal/style.css": {"get": {"summary": "How the pages look.", "responses": _document("text/css")}},
        "/consent.js": {"get": {"summary": "The consent banner.", "responses": _document("text/javascript")}},
        "/metrics": {
            "get": {
                "summary": "Counts and durations, for Prometheus.",
                "security": [{"metrics": []}],
                "responses": _document("text/plain") | _problems(s401="Not the token for metrics."),
            }
        },
        "/jobs/{name}": {
            "post": {
                "summary": "Run a job, for the scheduler.",
                "security": [{"jobs": []}],
                "parameters": [
                    {
                        "name": "name",
                        "in": "path",
                        "required": True,
                        "schema": {"enum": list(JOBS)},
                    }
                ],
                "responses": _answer("The job's report.", {"type": "object"})
                | _problems(
                    s401="Not the jobs' token.",
                    s404="There is no such job.",
                    s503="The database does not answer: the job is not done.",
                ),
            }
        },
    },
    "components": {
        "securitySchemes": {
            "clerk": {"type": "http", "scheme": "bearer", "bearerFormat": "Clerk session token"},
            "operator": {"type": "http", "scheme": "bearer", "bearerFormat": "OPERATOR_TOKEN"},
            "metrics": {"type": "http", "scheme": "bearer", "bearerFormat": "METRICS_TOKEN"},
            "jobs": {"type": "http", "scheme": "bearer", "bearerFormat": "JOBS_TOKEN"},
        },
        "schemas": {
            "Export": {
                "type": "object",
                "required": ["schema_version", "generated_at"],
                "properties": {
                    "schema_version": {"const": 1},
                    "generated_at": {"type": "string", "format": "date-time"},
                },
                "additionalProperties": {"type": "array", "items": {"type": "object"}},
            },
            "Confirmation": {
                "type": "object",
                "required": ["confirmation"],
                "properties": {"confirmation": {"const": CONFIRMATION}},
            },
            "Receipt": {
                "type": "object",
                "required": ["receipt", "state", "requested_at", "erased_at", "clerk_deleted_at", "counts"],
                "properties": {
                    "receipt": {"type": "string", "format": "uuid"},
                    "state": {"enum": ["running", "erased", "complete"]},
                    "requested_at": {"type": "string", "format": "date-time"},
                    "erased_at": {"type": ["string", "null"], "format": "date-time"},
                    "clerk_deleted_at": {"type": ["string", "null"], "format": "date-time"},
                    "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                },
            },
            "BackupBegun": {
                "type": "object",
                "required": list(BACKUP),
                "properties": BACKUP | {"status": {"const": "started"}},
            },
            "Backup": {
                "type": "object",
                "required": [*BACKUP, *BACKUP_END],
                "properties": BACKUP | BACKUP_END,
            },
            "Invitation": {
                "type": "object",
                "required": ["email", "role"],
                "properties": {
                    "email": {"type": "string", "format": "email"},
                    "role": {"enum": list(INVITED_ROLES)},
                },
            },
            "InvitationSent": {
                "type": "object",
                "required": ["clerk_invitation_id", "role"],
                "properties": {"clerk_invitation_id": {"type": "string"}, "role": {"enum": list(INVITED_ROLES)}},
            },
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

# What service/limits.py exempts has no limit.
for _path, _operations in DOCUMENT["paths"].items():
    if _path not in {"/healthz", "/readyz"}:
        for _operation in _operations.values():
            _too_many = _problems(s429="Too many requests: Retry-After says when to come back.")
            _operation["responses"] = _too_many | _operation["responses"]
