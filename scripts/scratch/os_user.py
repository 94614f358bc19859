"""PostgreSQL refuses to run as root. For root it runs as our own system user, on files that this user can read."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TypedDict

SYSTEM_USER = "ballast"
REACHABLE_FOLDER = Path("/var/lib/ballast")


class Identity(TypedDict, total=False):
    """Arguments for subprocess.Popen; empty when we are not root."""

    user: int
    group: int
    extra_groups: list[int]


def is_root() -> bool:
    return os.geteuid() == 0


def find_identity() -> Identity:
    """The user that PostgreSQL runs as. Creates the system user on first use."""
    if not is_root():
        return {}
    user = _system_user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def find_reachable(path: Path) -> Path:
    """`path`, or a replacement below /var/lib/ballast if a private parent folder hides `path` from the system user."""
    parents = [parent for parent in path.absolute().parents if parent.exists()]
    if not is_root() or all(parent.stat().st_mode & stat.S_IXOTH for parent in parents):
        return path
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
    return REACHABLE_FOLDER / f"{path.name}-{digest}"


def find_reachable_copy(folder: Path, *names: str) -> Path:
    """`folder`, or a replacement with a copy of its subfolders `names`. A newer version of them is copied again."""
    if find_reachable(folder / names[0]) == folder / names[0]:
        return folder
    version = "-".join(str((folder / name).stat().st_mtime_ns) for name in names)
    place = find_reachable(folder / version)
    if not place.exists():
        unfinished = place.with_suffix(f".{os.getpid()}")
        for name in names:
            shutil.copytree(folder / name, unfinished / name, symlinks=True)
        unfinished.rename(place)
    return place


def make_folder(path: Path) -> None:
    """Makes a folder that only the user who runs PostgreSQL may enter."""
    path.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.chmod(0o700)
    give(path)


def give(path: Path) -> None:
    """Makes the system user the owner of a file or folder. Does nothing if we are not root."""
    if is_root():
        user = _system_user()
        os.chown(path, user.pw_uid, user.pw_gid)


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run(["useradd", *options, SYSTEM_USER], check=True, capture_output=True)
        return pwd.getpwnam(SYSTEM_USER)
