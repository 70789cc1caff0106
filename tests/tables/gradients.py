"""The tables of ``losses/README.md``: ``python -m tests.tables.gradients`` writes them anew.

They are measured, not written down: which entry's and which hyper-parameter's derivative of a loss
is not zero, and what TorchRL's estimators and losses answer where a hyper-parameter is asked for
its gradient, beside central differences.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDictBase

from paramtree import tree
from tests.contract.case import Reducer, numbers
from tests.contract.cases import LOSSES
from tests.tables.torchrl import QUESTIONS, Question

PAGE = Path(__file__).parents[2] / "losses" / "README.md"


def flows(row: Reducer) -> dict[str, tuple[list[str], list[str]]]:
    """For each loss of a reducer, what has a gradient and what is read without one."""
    hyper = tree.entries(numbers({**row.hyper, **row.target_hyper}))
    td = row.finished(row.td(), hyper)
    own = {name: hyper[name] for name in row.hyper}
    entries = {
        key: td.get(key)
        for key in td.keys(include_nested=True, leaves_only=True)
        if td.get(key).is_floating_point()
    }

    def gradients(name: str) -> tuple[dict, dict]:
        def value(entries: dict, own: dict) -> torch.Tensor:
            return row.call(filled(td, entries), own)[name]

        return torch.func.grad(value, (0, 1))(entries, own)

    names = sorted(key for key in row.call(td, own).keys() if key.startswith("loss_"))
    found = {}
    for name in names:
        of_entries, of_hyper = gradients(name)
        both = {**{shown(k): x for k, x in of_entries.items()}, **of_hyper}
        found[name] = ([k for k, x in both.items() if x.abs().sum() > 0], list(both))
    return found


def filled(td: TensorDictBase, entries: dict) -> TensorDictBase:
    out = td.copy()
    for key, value in entries.items():
        if isinstance(key, tuple):
            head = out.get(key[0]).copy()
            out.set(key[0], head.set(key[1:], value))
        else:
            out.set(key, value)
    return out


def shown(key: str | tuple[str, ...]) -> str:
    return key if isinstance(key, str) else ".".join(key)


def flow_table() -> str:
    lines = ["| function | loss | carries gradient to |", "|---|---|---|"]
    for row in sorted((r for r in LOSSES if isinstance(r, Reducer)), key=lambda r: r.name):
        for loss, (live, _) in flows(row).items():
            lines.append(f"| `{row.name}` | `{loss}` | {', '.join(f'`{x}`' for x in live)} |")
    return "\n".join(lines)


def central(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    h = 1e-6
    with torch.no_grad():
        return float(fn(x + h) - fn(x - h)) / (2 * h)


def answer(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> str:
    """What autodiff says of a scalar function: the number, or why there is none."""
    x = x.clone().requires_grad_()
    value = fn(x)
    if not value.requires_grad:
        return "none"
    (slope,) = torch.autograd.grad(value, x, allow_unused=True)
    return "none" if slope is None else f"{float(slope):.6g}"


def verdict(found: str, right: float) -> str:
    if found == "none":
        return "none"
    error = abs(float(found) - right) / max(abs(right), 1e-12)
    return f"{found} ✓" if error < 1e-4 else f"**{found}**"


def mapped(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> str:
    """Whether vmap over the hyper-parameter alone gives what a loop gives."""
    many = x * torch.tensor([1.0, 0.97, 0.9], dtype=torch.float64)
    try:
        found = torch.func.vmap(fn)(many)
    except Exception:  # whatever the library raises
        return "raises"
    right = torch.stack([fn(one) for one in many])
    return "✓" if torch.allclose(found, right, rtol=1e-6) else "**wrong**"


def row_of(question: Question) -> str:
    x = torch.tensor(question.at, dtype=torch.float64)
    right = central(question.ours, x)
    theirs = verdict(answer(question.theirs, x), right)
    ours = verdict(answer(question.ours, x), right)
    maps = f"{mapped(question.theirs, x)} | {mapped(question.ours, x)}"
    return f"| `{question.name}` | {question.of} | {right:.6g} | {theirs} | {ours} | {maps} |"


def torchrl_table() -> str:
    columns = (
        "of",
        "derivative with respect to",
        "central difference",
        "TorchRL",
        "paramtree",
        "TorchRL under vmap over it",
        "paramtree under vmap",
    )
    head = f"| {' | '.join(columns)} |"
    return "\n".join([head, "|---" * len(columns) + "|", *(row_of(q) for q in QUESTIONS)])


def written(page: str) -> str:
    """The page with its tables made anew, each between its two marks."""
    for name, table in (("flows", flow_table), ("torchrl", torchrl_table)):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        text = f"{table()}\n"
        page, count = re.subn(pattern, lambda m, t=text: m[1] + t + m[2], page, flags=re.DOTALL)
        assert count == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
