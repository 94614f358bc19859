"""The settings of invoicing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.settings.fields import SettingsFile


class Invoicing(SettingsFile):
    """`.env.invoicing.example` explains them."""

    write_off_days: Annotated[int, Field(ge=1, le=3650)]
