"""What the demonstration is told with: numbered steps, facts, and claims that end it when they do not hold."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dds.runtime.devnet import Devnet
from dds.storage.home import Home


class ClaimFailed(Exception):
    """Something that the demonstration promises did not hold."""


class Stage:
    """The numbered steps on standard output: styled on a terminal, plain elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._step = 0

    def step(self, title: str) -> None:
        self._step += 1
        self._console.print(f"\n[bold cyan]{self._step}. {title}[/]")

    def fact(self, name: str, value: str) -> None:
        self._console.print(f"   [dim]{name:<14}[/] {value}", markup=True)

    def good(self, text: str) -> None:
        self._console.print(f"   [green]ok[/]  {text}")

    def bad(self, text: str) -> None:
        self._console.print(f"   [red]FAILED[/]  {text}")

    def seconds(self) -> float:
        return time.monotonic() - self._started


@dataclass(frozen=True, slots=True)
class Scene:
    """What the steps work with."""

    stage: Stage
    devnet: Devnet
    creator: Home
    reader: Home
    source: Path
    title: str
    work: Path


def claim(held: bool, otherwise: str) -> None:
    if not held:
        raise ClaimFailed(otherwise)
