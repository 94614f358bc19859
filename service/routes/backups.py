"""`/api/v1/backups`: an operator starts a backup, and lists earlier ones with their status."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service import bearer
from service.components import components

backups = Blueprint("backups", __name__, url_prefix="/api/v1/backups")


@backups.before_request
def _require_operator() -> None:
    bearer.require(components().settings.operator_token, "operator-refused", "OPERATOR_TOKEN")


@backups.post("")
def start() -> ResponseReturnValue:
    """Starts a backup, which runs after this is answered."""
    return jsonify(components().backups.start("manual")), HTTPStatus.ACCEPTED


@backups.get("")
def show() -> ResponseReturnValue:
    """Lists the newest hundred backups."""
    return jsonify(backups=components().data_api.call("backups", {}))
