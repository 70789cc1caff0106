"""Who did how well on the same levels: raw numbers in a file, and the table that follows from them.

A file holds ``setting``, ``optimum [n]`` and ``contestants``: by name, for each measure of
``lives.MEASURES``, ``[n]``, or ``[S, n]`` for what has meta-seeds. Its ``summary`` follows from
these alone, so that it can be computed again.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import intervals
import torch
from lives import MEASURES, on_file, recomputed
from rich.console import Console
from rich.table import Table
from torch import Tensor

Raw = dict[str, Any]

OURS, THEIRS = "lpg", "a2c tuned"


def summarized(raw: Raw) -> dict[str, Any]:
    """Means with intervals of all contestants, and ours against each other one, paired by level."""
    best = _numbers(raw["optimum"])
    found: dict[str, Any] = {"contestants": {}, "against": {}}
    for name, record in raw["contestants"].items():
        row = {}
        for measure in MEASURES:
            table = _numbers(record[measure])
            row[measure] = _statistics(table)
        table = _numbers(record["final"])
        row["share"] = None if best is None else intervals.bootstrap(intervals.share, table, best)
        if table is not None and table.ndim == 2 and len(table) > 1:
            row["final by seed"] = [float(mean) for mean in table.mean(1)]
        found["contestants"][name] = row
    ours = raw["contestants"].get(OURS)
    for name, record in raw["contestants"].items():
        if ours is None or name == OURS:
            continue
        row = {}
        for measure in MEASURES:
            pair = _numbers(ours[measure]), _numbers(record[measure])
            if pair[0] is None or pair[1] is None:
                continue
            row[measure] = {
                "difference": intervals.bootstrap(intervals.difference, *pair),
                "gain": intervals.bootstrap(intervals.gain, *pair),
                "iqm difference": intervals.bootstrap(
                    lambda x, y: intervals.iqm(x) - intervals.iqm(y), *pair
                ),
            }
        found["against"][name] = row
    return found


def _statistics(table: Tensor | None) -> Any:
    if table is None:
        return None
    mean, iqm = (intervals.bootstrap(f, table) for f in (intervals.mean, intervals.iqm))
    return {"mean": mean, "iqm": iqm}


def _numbers(values: Any) -> Tensor | None:
    """A table; None where a number of it is missing."""
    flat = values if not isinstance(values[0], list) else [x for row in values for x in row]
    if any(x is None for x in flat):
        return None
    return torch.tensor(values, dtype=torch.float64)


def shown(summary: dict[str, Any], title: str) -> list[Table]:
    """The summary as tables."""
    table = Table(title=title)
    table.add_column("agents of")
    heads = ("reward, last fifth", "middle half", "of the best", "reward, whole life", "return")
    for head in heads:
        table.add_column(head, justify="right")
    for name, row in summary["contestants"].items():
        cells = [
            _interval(row["final"] and row["final"]["mean"]),
            _interval(row["final"] and row["final"]["iqm"]),
            _interval(row["share"], "{:.1%}"),
            _interval(row["lifetime"] and row["lifetime"]["mean"]),
            _interval(row["return"] and row["return"]["mean"], "{:.3f}"),
        ]
        table.add_row(name, *cells)
    against = Table(title=f"{OURS} less ...")
    against.add_column("agents of")
    for head in ("reward, last fifth", "of theirs", "middle half", "reward, whole life", "return"):
        against.add_column(head, justify="right")
    for name, row in summary["against"].items():
        cells = [
            _interval(row["final"]["difference"]),
            _interval(row["final"]["gain"], "{:+.1%}"),
            _interval(row["final"]["iqm difference"]),
            _interval(row["lifetime"]["difference"]),
            _interval(row["return"]["difference"] if "return" in row else None, "{:.3f}"),
        ]
        against.add_row(name, *cells)
    return [table, against]


def _interval(found: intervals.Interval | None, form: str = "{:.4f}") -> str:
    if found is None or found["value"] is None:
        return "-"
    value, low, high = ("-" if x is None else form.format(x) for x in found.values())
    return f"{value} ({low} to {high})"


def report(raw: Raw, path: Path, title: str) -> None:
    """Write raw numbers with their summary, and show it."""
    summary = summarized(raw)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**raw, "summary": summary}, separators=(",", ":")) + "\n")
    show(summary, title)
    print(path)


def recompute(path: Path, title: str) -> None:
    """Show what follows from the raw numbers on file, and hold the summary there against it.

    Raises:
        SystemExit: they differ, or there are none.
    """
    recomputed(on_file(path), str(path), summarized, partial(show, title=title))
    print(f"{path}: its summary is the one that its raw numbers give")


def pooled(raws: list[Raw]) -> Raw:
    """Measurements of the same contestants on other levels, as if it were one on all of these."""

    def joined(parts: list[Any]) -> list[Any]:
        if isinstance(parts[0][0], list):  # [S, n]
            return [sum(rows, []) for rows in zip(*parts, strict=True)]
        return sum(parts, [])

    tables = [raw["contestants"] for raw in raws]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    contestants = {
        name: {measure: joined([table[name][measure] for table in tables]) for measure in MEASURES}
        for name in names
    }
    return {"optimum": joined([raw["optimum"] for raw in raws]), "contestants": contestants}


def show(summary: dict[str, Any], title: str) -> None:
    """Print the tables."""
    console = Console(width=160)
    for table in shown(summary, title):
        console.print(table)
