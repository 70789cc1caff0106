"""The indented blocks of docstrings: which are equations, which are code, which are neither."""

import ast
import re
from collections.abc import Iterator
from enum import Enum, auto

from tests.docs.equations import RELATION

SECTION = re.compile(r"[A-Z][A-Za-z ]+:$")


class Kind(Enum):
    """What a part of a docstring is."""

    PROSE = auto()
    DOCTEST = auto()
    CODE = auto()
    EQUATION = auto()
    TABLE = auto()


def blocks(docstring: str, is_opening: bool) -> Iterator[tuple[Kind, str]]:
    """A docstring in parts, whose texts together are the docstring.

    A block is indented by four or more and stands between blank lines, and not in a section such
    as ``Args``. In the opening of a file a block is a table unless each of its rows is an equation.
    """
    part: list[str] = []
    block: list[str] = []
    section = fenced = False
    for line in docstring.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith("```")
        blank, indented = not line.strip(), line.startswith("    ")
        if not blank and not indented:
            section = bool(SECTION.match(line.strip()))
        begins = not block and indented and not (section or fenced)
        if begins and (not part or not part[-1].strip()) or block and (indented or blank):
            block.append(line)
            continue
        if block:
            yield from _cut(part, block, is_opening)
            part, block = [], []
        part.append(line)
    yield from _cut(part, block, is_opening)


def _cut(part: list[str], block: list[str], is_opening: bool) -> Iterator[tuple[Kind, str]]:
    if part:
        yield Kind.PROSE, "".join(part)
    if block:
        text = "".join(block)
        yield kind_of(text, is_opening), text


def kind_of(block: str, is_opening: bool) -> Kind:
    """What an indented block is."""
    rows = [line for line in block.splitlines() if line.strip()]
    margin = min(len(line) - len(line.lstrip()) for line in rows)
    rows = [line[margin:] for line in rows]
    heads = [row for row in rows if not row.startswith(" ")]
    if rows[0].startswith(">>>"):
        return Kind.DOCTEST
    if is_opening and len(heads) > 1 and is_table(heads):
        return Kind.TABLE
    if is_code("\n".join(rows), is_opening):
        return Kind.CODE
    if is_opening and not all(RELATION.search(row) for row in heads):
        return Kind.TABLE
    return Kind.EQUATION


def is_table(rows: list[str]) -> bool:
    """Whether a second column begins at the same place in all rows, and tells in words."""
    starts = [{m.end() for m in re.finditer(r"(?<=\S) {2,}", row)} for row in rows]
    return bool(set.intersection(*starts)) and not all(RELATION.search(row) for row in rows)


def is_code(text: str, is_opening: bool) -> bool:
    """Whether a block is Python: by what no equation has, or, in an opening, by its syntax."""
    if re.search(r"""[({ ]"|^@|lambda \w+:|\w\(\w+=|, \w+=\w|  # """, text, re.MULTILINE):
        return True
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return is_opening and not re.search(r"\w \(", text)  # a factor, not a call
