"""A progress bar on standard error, one line per phase."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from dds.runtime.results import Progress


class ProgressBar:
    """Use as a context manager; the bar is gone when it ends."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        task = self._tasks.get(progress.phase)
        if task is None:
            task = self._tasks[progress.phase] = self._bar.add_task(progress.phase, total=progress.total_bytes)
        self._bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)
