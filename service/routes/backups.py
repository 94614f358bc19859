"""`/api/v1/backups`: an operator starts a backup, and sees what became of those before."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service.backups import BackupRunning, BackupsUnconfigured
from service.bearer import carries
from service.components import components
from service.data_api import CallFailed
from service.problems import DatabaseUnavailable, Problem

backups = Blueprint("backups", __name__, url_prefix="/api/v1/backups")


class OperatorRefused(Problem):
    """The request does not carry the operator's token, or there is none."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "operator-refused"
    title = "Only an operator may do this"
    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012 - never changed


class AlreadyRunning(Problem):
    """One backup at a time."""

    status = HTTPStatus.CONFLICT
    slug = "backup-running"
    title = "A backup is running"


class Unconfigured(Problem):
    """`missing` names the variables that are not set."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "backups-unconfigured"
    title = "This service cannot make backups"


@backups.before_request
def _only_operators() -> None:
    if not carries(components().settings.operator_token):
        raise OperatorRefused("Send the operator's token: Authorization: Bearer <OPERATOR_TOKEN>.")


@backups.post("")
def start() -> ResponseReturnValue:
    """Begins a backup; it is made after this is answered."""
    try:
        return jsonify(components().backups.start("manual")), HTTPStatus.ACCEPTED
    except BackupsUnconfigured as refusal:
        raise Unconfigured(f"Set {', '.join(refusal.missing)}: see .env.example.", missing=refusal.missing) from refusal
    except BackupRunning as refusal:
        raise AlreadyRunning("Wait until it has ended; GET tells.") from refusal
    except CallFailed as failure:
        raise DatabaseUnavailable("Try again in a few seconds.") from failure


@backups.get("")
def show() -> ResponseReturnValue:
    """The newest hundred backups."""
    try:
        return jsonify(backups=components().data_api.call("backups", {}))
    except CallFailed as failure:
        raise DatabaseUnavailable("Try again in a few seconds.") from failure
