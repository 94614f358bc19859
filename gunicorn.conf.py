"""gunicorn's configuration for the service: run `gunicorn` in this folder."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.settings import SettingsInvalid, load

try:
    settings = load()
except SettingsInvalid as error:
    sys.exit(str(error))  # in the master process: one line instead of a traceback from each worker

# Locally only this machine may connect. A platform's proxy connects from outside, to the PORT that it chose.
local = settings.environment in {"local", "test"}
own_port = urlsplit(os.environ.get("SERVICE_URL", "")).port if local else None
bind = f"{'127.0.0.1' if local else '0.0.0.0'}:{own_port or os.environ.get('PORT', '8000')}"  # noqa: S104


def on_starting(_server: object) -> None:
    """Creates the folder for the workers' metrics, which prometheus-client finds by PROMETHEUS_MULTIPROC_DIR."""
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    folder = Path(given or tempfile.mkdtemp(prefix="ballast-metrics-"))
    folder.mkdir(parents=True, exist_ok=True)
    _remove_counts(folder)  # left by a service that was killed
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def on_exit(_server: object) -> None:
    """Removes the metrics when the service ends."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    _remove_counts(folder)
    with contextlib.suppress(OSError):  # the folder contains files of others
        folder.rmdir()


def _remove_counts(folder: Path) -> None:
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)


def post_worker_init(worker: Any) -> None:
    """Gives the service the number of threads, also if the command line changed it."""
    worker.wsgi.extensions["ballast"].threads.total = worker.cfg.threads


wsgi_app = "service.app:create_app()"
worker_class = "service.gunicorn_worker.Worker"
workers = 2
threads = 8
sendfile = False  # it has no deadline
timeout = 30  # twice as long as Svix waits
graceful_timeout = 20  # a stop lets requests finish: they take at most 14 s, except downloads
limit_request_field_size = 16384  # a token with 8 kB of claims has 11 kB
keepalive = 75  # longer than a load balancer's 60 s, so that it never uses a connection that we are closing

accesslog = None  # service/logs.py writes one line per request
errorlog = "-"
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "service.logs.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"gunicorn.error": {"level": "INFO", "handlers": ["stderr"], "propagate": False}},
}

if Path("/dev/shm").is_dir():  # noqa: S108 - a worker's heartbeat must not wait for a disk
    worker_tmp_dir = "/dev/shm"  # noqa: S108
control_socket_disable = True  # unused
