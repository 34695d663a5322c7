"""What the command line shows: progress bars on stderr, tables of gates on stdout."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
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


@contextmanager
def bars() -> Iterator[Progress]:
    """A progress display on stderr, which leaves stdout to the results."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
            yield progress
    finally:
        if not console.is_terminal:
            console.line()  # rich leaves the last line of a log open


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


def duration(seconds: float) -> str:
    """Seconds, or milliseconds where these are few."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def verdict(agreement: dict[str, Any]) -> str:
    """The agreement in words."""
    if agreement.get("max_abs_difference"):
        text = f"{'within' if agreement['agrees'] else 'differ by'} {agreement['max_abs_difference']:.1e}"
    else:
        text = "identical" if agreement["agrees"] else "differ"
    if agreement.get("first_difference"):
        text += f", first at {agreement['first_difference']}"
    return text


def demo_table(results: Mapping[str, dict[str, Any]]) -> Table:
    """One row per model of the demo."""
    table = Table("model", "kernels", "plain PyTorch", "speed-up", "same seed, both ways", "bits/dim")
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, "[red]FAILED[/]", "", "", escape(result["error"]), "")
            continue
        seconds = result["seconds"]
        colour = "green" if result["agreement"]["agrees"] else "red"
        bits = f"{result['score']['bits_per_dim']:.3f}" if "score" in result else ""
        times = (duration(seconds["kernels"]), duration(seconds["reference"]))
        table.add_row(name, *times, f"{result['ratio']:.2f}x", f"[{colour}]{verdict(result['agreement'])}[/]", bits)
    return table
