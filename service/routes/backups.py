"""`/api/v1/backups`: an operator starts a backup, and sees what became of those before."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service import bearer
from service.backups import BackupRunning, BackupsUnconfigured
from service.components import components
from service.problems import Problem

backups = Blueprint("backups", __name__, url_prefix="/api/v1/backups")


class AlreadyRunning(Problem, status=409, slug="backup-running", title="A backup is running"):
    """One backup at a time."""


class Unconfigured(Problem, status=503, slug="backups-unconfigured", title="This service cannot make backups"):
    """`missing` names the variables that are not set."""


@backups.before_request
def _only_operators() -> None:
    bearer.require(components().settings.operator_token, "operator-refused", "OPERATOR_TOKEN")


@backups.post("")
def start() -> ResponseReturnValue:
    """Begins a backup; it is made after this is answered."""
    try:
        return jsonify(components().backups.start("manual")), HTTPStatus.ACCEPTED
    except BackupsUnconfigured as refusal:
        raise Unconfigured(f"Set {', '.join(refusal.missing)}: see .env.example.", missing=refusal.missing) from refusal
    except BackupRunning as refusal:
        raise AlreadyRunning("Wait until it has ended; GET tells.") from refusal


@backups.get("")
def show() -> ResponseReturnValue:
    """The newest hundred backups."""
    return jsonify(backups=components().data_api.call("backups", {}))
