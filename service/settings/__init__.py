"""The service's settings, read from the environment. A mistake stops the start with one line that names it.

Each module in this folder may define a SettingsFile. docs/extension-points.md shows one.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import cast

from pydantic import ValidationError

from service.settings.core import LEGAL_SETTINGS, Settings
from service.settings.fields import (
    ADDRESS,
    BACKUP_PLACE,
    CLERK_KEY,
    GUARDED_ENVIRONMENTS,
    ClerkKey,
    Origin,
    Origins,
    SettingsFile,
    WebhookSecrets,
)

__all__ = [
    "ADDRESS", "BACKUP_PLACE", "CLERK_KEY", "GUARDED_ENVIRONMENTS", "LEGAL_SETTINGS", "ClerkKey", "Origin", "Origins",
    "Settings", "SettingsFile", "SettingsInvalid", "WebhookSecrets", "find_settings", "list_mistakes", "load",
    "secret_variables",
]  # fmt: skip


class SettingsInvalid(Exception):
    """One line naming each variable that is missing or malformed, never its value."""


def find_settings() -> list[type[SettingsFile]]:
    """The classes of all modules in this folder, Ballast's first."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    found = [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, SettingsFile) and each.__module__ == module.__name__
    ]
    return [Settings, *(each for each in found if each not in {Settings, SettingsFile})]


def secret_variables() -> set[str]:
    """The names of all variables whose values are secret."""
    fields = [field for kind in find_settings() for field in kind.model_fields.items()]
    return {name.upper() for name, field in fields if "SecretStr" in str(field.annotation)}


def load() -> Settings:
    """Reads the environment. Raises SettingsInvalid."""
    loaded: dict[type[SettingsFile], SettingsFile] = {}
    mistakes: dict[str, str] = {}
    for kind in find_settings():
        try:
            loaded[kind] = kind()  # type: ignore[call-arg]
        except ValidationError as error:
            mistakes |= _name_mistakes(error)
    if mistakes:
        # Raised outside the except block: pydantic's error holds the values, and a chained traceback would print them.
        raise SettingsInvalid(f"The service cannot start: {_join(mistakes)}. See .env.example.")
    settings = cast("Settings", loaded.pop(Settings))
    settings.add(loaded)
    return settings


def list_mistakes(error: ValidationError) -> str:
    """Each variable and what is wrong with it, never its value."""
    return _join(_name_mistakes(error))


def _name_mistakes(error: ValidationError) -> dict[str, str]:
    mistakes = error.errors(include_input=False)
    # A check of several variables has no location: its message names them.
    names = [str(item["loc"][0]).upper() if item["loc"] else error.title for item in mistakes]
    return {name: _describe_mistake(each["type"], each["msg"]) for name, each in zip(names, mistakes, strict=True)}


def _join(mistakes: dict[str, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in mistakes.items())


def _describe_mistake(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
