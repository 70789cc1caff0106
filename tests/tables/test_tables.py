"""The tables in ``losses/README.md`` say what is measured."""

import re

import pytest

from tests.contract.case import Reducer
from tests.contract.cases import LOSSES
from tests.tables.gradients import PAGE, flow_table, flows, torchrl_table
from tests.tables.torchrl import QUESTIONS


def test_the_flows_are_as_written():
    assert flow_table() in PAGE.read_text()


def test_torchrls_gradients_are_as_written():
    table = torchrl_table()
    assert table in PAGE.read_text()
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
    reached = {name for live, _ in flows(row).values() for name in live}
    assert set(row.hyper) <= reached
