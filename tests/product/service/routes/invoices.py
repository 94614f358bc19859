"""`/api/v1/…/invoices`: writes off an invoice, and shows when the job does."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service.components import components
from service.identity import current_caller
from service.permissions import PermittedCaller, requires
from service.session import call_as_caller
from service.settings.invoicing import Invoicing

invoices = Blueprint("invoices", __name__, url_prefix="/api/v1")


@invoices.post("/invoices/<uuid:invoice_id>/write-off")
def write_off(invoice_id: UUID) -> ResponseReturnValue:
    """Acts as the caller: the database decides whether they may."""
    caller = current_caller(components().session_tokens)
    call_as_caller(caller, "write_off_invoice", {"invoice": str(invoice_id)})
    return "", HTTPStatus.NO_CONTENT


@invoices.get("/organizations/<uuid:organization_id>/invoices/rules")
@requires("invoices:read")
def show_rules(_: PermittedCaller) -> ResponseReturnValue:
    """Needs a permission in the organization of the path."""
    return jsonify(write_off_days=components().settings.of(Invoicing).write_off_days)
