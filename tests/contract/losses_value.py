"""Rows of ``losses/value.py``."""

from tests.contract.case import Function, draw

ROWS = [
    Function("squared_error", lambda: {"prediction": draw("a", 3), "target": draw("b", 3)}),
]
