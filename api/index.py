"""The service on Vercel, whose Python runtime serves `app`: docs/deploy.md says what does not work there."""

from __future__ import annotations

import os

# Vercel's name of the commit that it builds, unless RELEASE says otherwise.
os.environ.setdefault("RELEASE", os.environ.get("VERCEL_GIT_COMMIT_SHA", "vercel"))

from service.app import create_app

app = create_app()
