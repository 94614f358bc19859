"""A progress bar for long commands: stage, bytes and rate. It is shown on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


@dataclass(frozen=True)
class Bar:
    """A progress bar for work in stages."""

    progress: Progress
    task: TaskID

    def start_stage(self, name: str, total_bytes: int | None = None) -> None:
        """Starts the next stage; `total_bytes` is None if the size is unknown."""
        self.progress.reset(self.task, description=name, total=total_bytes)

    def advance_to(self, done_bytes: int) -> None:
        self.progress.update(self.task, completed=done_bytes)


class NoProgress(Bar):
    """A bar that displays nothing."""

    def __init__(self) -> None:
        progress = Progress(disable=True)
        super().__init__(progress, progress.add_task("", total=None))


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Shows a bar on stderr until the block ends."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task("", total=None))
