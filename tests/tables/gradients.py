"""The tables of ``losses/README.md``: ``python -m tests.tables.gradients`` writes them anew.

They are measured, not written down, and their equations are the docstrings': which entry's and
which hyper-parameter's derivative of a loss is not zero, and what TorchRL's estimators and losses
answer where a hyper-parameter is asked for its gradient, beside central differences.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

import losses
from paramtree import tree
from tests.contract.case import Case, Function, Reducer, changed, floats, named, numbers
from tests.contract.cases import LOSSES
from tests.tables.equations import of_function, of_loss
from tests.tables.torchrl import QUESTIONS, Question

ESTIMATORS = sorted(name for name in dir(losses) if name.startswith("add_"))
HYPER = {"gamma": 0.9, "lmbda": 0.7, "alpha": 0.3, "temperature": 0.7, "dqda_clipping": 0.5}
INSIDE = {"redq_critic_loss": {"subset": [0, 1]}}  # what else a loss needs to make its targets
SUPPORT = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
HYPER |= {"rho_clip": 1.1, "c_clip": 1.05, "pg_rho_clip": 1.2, "leak": 0.1}
PAGE = Path(__file__).parents[2] / "losses" / "README.md"


def live(fn: Callable[[dict, dict], torch.Tensor], entries: dict, hyper: dict) -> list[str]:
    """The entries and hyper-parameters whose derivative of a scalar is not zero."""
    slopes = torch.func.grad(fn, (0, 1))(entries, hyper)
    both = {**{named(key): x for key, x in slopes[0].items()}, **slopes[1]}
    return [name for name, x in both.items() if x.abs().sum() > 0]


def flows(row: Reducer, finished: bool = True) -> dict[str, list[str]]:
    """For each loss of a reducer, what has a gradient; on finished targets, or on none."""
    hyper = tree.entries(numbers({**row.hyper, **row.target_hyper}))
    td = row.finished(row.td(), hyper) if finished else row.td()
    own = {name: hyper[name] for name in (row.hyper if finished else hyper)}
    more = {} if finished else INSIDE.get(row.name, {})
    names = sorted(key for key in row.call(td, own, **more).keys() if key.startswith("loss_"))

    def one(name: str) -> list[str]:
        return live(lambda e, h: row.call(changed(td, e), h, **more)[name], floats(td), own)

    return {name: one(name) for name in names}


def makes_targets(row: Reducer) -> bool:
    """Whether the reducer can make the targets that its row makes outside."""
    return row.targets is not None and bool(row.target_hyper) and {*row.target_hyper} <= row.real


def estimator_flows(name: str) -> dict[str, list[str]]:
    """For each entry that an estimator writes, what it carries gradient to."""
    row = next(r for r in LOSSES if isinstance(r, Case) and r.name == f"losses.{name}")
    fn, td = getattr(losses, name), row.args()[0]
    parameters = inspect.signature(fn).parameters
    hyper = tree.entries(numbers({k: x for k, x in HYPER.items() if k in parameters}))
    options: dict[str, Any] = {"support": SUPPORT} if "support" in parameters else {}
    made = fn(td, **hyper, **options)
    written = sorted(key for key in made.keys() if made.get(key) is not td.get(key, None))
    wave = torch.arange(1, 1000, dtype=torch.float64).cos()

    def one(key: str) -> list[str]:
        def value(entries: dict, hyper: dict) -> torch.Tensor:
            x = fn(changed(td, entries), **hyper, **options)[key].flatten()
            return (x * wave[: len(x)]).sum()

        return live(value, floats(td), hyper)

    return {key: one(key) for key in written if not isinstance(made.get(key), TensorDictBase)}


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def flow_table() -> str:
    gradients = ("carries gradient to, on finished targets", "making them itself")
    columns = ("function", "loss", "equation, per step", *gradients)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in sorted((r for r in LOSSES if isinstance(r, Reducer)), key=lambda r: r.name):
        inside = flows(row, finished=False) if makes_targets(row) else {}
        for loss, found in flows(row).items():
            same = listed(inside[loss]) if loss in inside else ""
            what = f"| `{row.name}` | `{loss}` | {of_loss(row.name, loss)}"
            lines.append(f"{what} | {listed(found)} | {same} |")
    return "\n".join(lines)


def estimator_table() -> str:
    lines = ["| estimator | writes | carries gradient to | equation |", "|---|---|---|---|"]
    for name in ESTIMATORS:
        for i, (key, found) in enumerate(estimator_flows(name).items()):
            equation = "" if i else of_function(name)
            lines.append(f"| `{name}` | `{key}` | {listed(found)} | {equation} |")
    return "\n".join(lines)


def step_table() -> str:
    lines = ["| function | equation | carries gradient to |", "|---|---|---|"]
    for row in sorted((r for r in LOSSES if isinstance(r, Function)), key=lambda r: r.name):
        args = tree.new(dict(row.args()))

        def value(entries: dict, hyper: dict, row: Function = row, args: Any = args) -> Any:
            out = row.call(tree.entries(changed(args, entries)), hyper)
            parts = [x.flatten() for x in tree.leaves(out) if x.is_floating_point()]
            whole = torch.cat(parts)
            return (whole * torch.arange(1, len(whole) + 1, dtype=whole.dtype).cos()).sum()

        if row.smooth:
            found = live(value, floats(args), tree.entries(numbers(row.hyper)))
            lines.append(f"| `{row.name}` | {of_function(row.name)} | {listed(found)} |")
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


TABLES = {
    "flows": flow_table,
    "estimators": estimator_table,
    "steps": step_table,
    "torchrl": torchrl_table,
}


def written(page: str) -> str:
    """The page with its tables made anew, each between its two marks."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        text = f"{table()}\n"
        page, count = re.subn(pattern, lambda m, t=text: m[1] + t + m[2], page, flags=re.DOTALL)
        assert count == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
