"""The equations of ``losses/README.md``: those of the docstrings, typeset."""

import inspect
import re

import losses
from tests.docs.blocks import Kind, blocks
from tests.docs.equations import row

# Losses whose docstring leaves to another what is the same there.
SAME = dict.fromkeys(
    ("ppo_clip_loss", "ppo_kl_penalty_loss", "discovered_policy_loss", "mirror_loss"), "ppo_loss"
) | {"lpg_meta_loss": "lpg_regularizer_loss"}


def rows(name: str) -> list[str]:
    """The equations of a docstring, each in one line."""
    docstring = inspect.getdoc(getattr(losses, name)) or ""
    found: list[str] = []
    for kind, text in blocks(docstring, is_opening=False):
        lines = text.splitlines() if kind == Kind.EQUATION else []
        margin = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
        for line in (line[margin:] for line in lines if line.strip()):
            if line.startswith(" "):
                found[-1] += f" {line.strip().rstrip(',.')}"
            else:
                found.append(line.rstrip(",."))
    return found


def of_loss(name: str, loss: str) -> str:
    """What a term of a reducer is, and the definitions beside it."""
    lines = rows(name)
    at = [i for i, line in enumerate(lines) if line.startswith("loss_")]
    mine = [i for i in at if lines[i].startswith(f"{loss} =")]
    if not mine:
        return of_loss(SAME[name], loss)
    parts = []
    for i in mine:
        end = min((j for j in at if j > i), default=len(lines))
        before = lines[: at[0]] if i == at[0] else []
        parts += [lines[i].partition(" = ")[2], *before, *lines[i + 1 : end]]
    return shown(parts)


def of_function(name: str) -> str:
    """All equations of a function's docstring."""
    return shown(rows(name))


def shown(lines: list[str]) -> str:
    typeset = "<br>".join(f"${row(re.sub(' {3,}', '   ', line))}$" for line in lines)
    assert "|" not in typeset, typeset
    return typeset
