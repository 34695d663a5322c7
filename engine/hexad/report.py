"""What the command line shows: progress bars on stderr, tables of gates on stdout."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .evaluation import Gate


def bars() -> Progress:
    """A progress display on stderr that leaves stdout to the results."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=sys.stderr),
    )


@contextmanager
def step_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar moved by ``progress(done, of)``."""
    with bars() as progress:
        task = progress.add_task(title, total=None, note="")

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


@contextmanager
def training_bar(name: str) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A bar moved by ``progress(done, of, figures)``, with the figures beside it."""
    with bars() as progress:
        task = progress.add_task(f"training {name}", total=None, note="")

        def update(done: int, total: int, figures: Mapping[str, float]) -> None:
            if done == total:
                progress.update(task, completed=done, total=total, note="judging on held-out data")
            else:
                note = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
                progress.update(task, completed=done, total=total, note=note)

        yield update


def gate_table(results: Mapping[str, list[Gate] | str]) -> Table:
    """Every gate with its bound and PASS or FAIL; a model that could not be judged shows why."""
    table = Table("model", "held-out figure", "value", "gate", "")
    for name, gates in results.items():
        if isinstance(gates, str):
            table.add_row(name, gates, "", "", "[red]FAIL[/]")
            continue
        for gate in gates:
            verdict = "[green]PASS[/]" if gate.passed else "[red]FAIL[/]"
            table.add_row(
                name, gate.name, f"{gate.value:.4g} {gate.unit}", f"{gate.relation} {gate.bound:.4g}", verdict
            )
    return table
