"""A tree in a terminal: as wide as it, in color by rich, and in a Python without rich."""

import io
import subprocess
import sys
import unicodedata

import pytest
import torch
from rich.console import Console
from tensordict import TensorDict

from paramtree import rng, show, tree


def width(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def deep(n=3):
    x = rng.normal(rng.key(0), (4, 6))
    x[0, 0] = float("nan")
    entries = {f"a_long_name_{i}": {"重み": x, "🙂": torch.ones(2)} for i in range(n)}
    return TensorDict(entries)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(show(deep())).splitlines()
    assert max(map(width, lines)) <= columns and len(lines) == 10
    if columns >= 60:
        assert sum("⚠ 1 NaN" in line for line in lines) == 3
    if columns == 200:
        for part in ("[4, 6]", "float32", "cpu", "24", "31%", "±", "█"):
            assert part in lines[2]


def test_columns_stand_below_each_other(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line for line in str(show(deep())).splitlines() if "float32" in line]
    places = {width(line[: line.index("float32")]) for line in lines[1:]}
    assert len(lines) == 7 and len(places) == 1


def test_levels_without_room_stay_closed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = str(show(deep(60))).splitlines()
    assert len(lines) == 1 + 60 + 2 * 20 and sum(" … " in line for line in lines) == 40
    flat = str(show({f"x{i:03}": torch.ones(1) for i in range(500)})).splitlines()
    assert flat[-1].split() == ["└─", "…", "400", "more"]


def test_one_long_name_hides_no_numbers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = str(show({"x" * 500: torch.ones(2), "y": torch.zeros(2)})).splitlines()
    assert all("[2]" in line and " ± 0" in line for line in lines[1:]) and "x…" in lines[1]


def test_deep_names_stay_in_sight(monkeypatch):
    nest = {"leaf": torch.ones(2)}
    for i in range(90):
        nest = {f"level_{i}": nest}
    for columns in (40, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = str(show(nest)).splitlines()
        assert len(lines) == 92 and max(map(width, lines)) <= columns
        assert "level_0" in lines[-2] and "leaf" in lines[-1] and "…" in lines[-1]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_terminal_without_these_signs_gets_others(encoding, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    view = show(deep(), tree.map(lambda x: 2 * x, deep()))
    text = str(view)
    print(text, flush=True)
    assert "[4, 6]" in text and r"\u91cd\u307f" in text and max(map(len, text.splitlines())) <= 120
    if encoding == "ascii":
        assert text.isascii() and "`- " in text and "first -> second" in text and "+-" in text
        colored = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Console(file=colored, width=120, color_system=None).print(view)
        assert colored.buffer.getvalue().decode().strip() == text.strip()


def test_rich_colors_the_same_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    view = show(deep(), tree.map(lambda x: 2 * x, tree.lock(deep())))
    plain, colored = io.StringIO(), io.StringIO()
    Console(file=plain, width=90, color_system=None).print(view)
    Console(file=colored, width=90, force_terminal=True, color_system="truecolor").print(view)
    assert plain.getvalue().rstrip("\n").split("\n") == str(view).split("\n")
    assert "\x1b[1;31m⚠ 1 NaN" in colored.getvalue() and "\x1b[33mdiffers" in colored.getvalue()


def test_it_needs_no_rich():
    code = "import sys; sys.modules['rich'] = None; import torch; from paramtree import show; "
    code += "print(show({'a': torch.ones(2)}))"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert "a" in out.stdout and "1 ± 0" in out.stdout and not out.stderr
