"""The tables in ``losses/README.md`` say what is measured."""

import re

import pytest

from tests.contract.case import Reducer
from tests.contract.cases import LOSSES
from tests.tables.gradients import PAGE, TABLES, flows, torchrl_table
from tests.tables.torchrl import QUESTIONS


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_written(name):
    assert TABLES[name]() in PAGE.read_text()


def test_ours_are_right():
    table = torchrl_table()
    rows = [line.split("|") for line in table.splitlines()[2:]]
    assert len(rows) == len(QUESTIONS)
    assert all("✓" in row[5] and "✓" in row[7] for row in rows)


def test_the_verdict_tells_right_from_wrong():
    theirs = [line.split("|")[4] for line in torchrl_table().splitlines()[2:]]
    for kind in ("✓", r"\*\*", "none"):
        assert any(re.search(kind, answer) for answer in theirs)


@pytest.mark.parametrize(
    "row", [row for row in LOSSES if isinstance(row, Reducer)], ids=lambda row: row.name
)
def test_every_hyper_parameter_of_a_loss_reaches_one_of_its_terms(row):
    reached = {name for found in flows(row).values() for name in found}
    assert set(row.hyper) <= reached
