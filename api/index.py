"""The service on Vercel, whose Python runtime serves `app`. docs/deploy.md lists what does not work there."""

from __future__ import annotations

import os

# RELEASE defaults to the commit that Vercel builds.
os.environ.setdefault("RELEASE", os.environ.get("VERCEL_GIT_COMMIT_SHA", "vercel"))

from service.app import create_app

app = create_app()
