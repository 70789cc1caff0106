"""Who may import whom, held by walking the syntax trees.

A file belongs to a *room*: ``paramtree/nn/linear.py`` to ``nn``, ``losses/returns.py`` to
``losses``, ``paramtree/__init__.py`` to ``paramtree``, and tests, notebooks and benchmarks to
``tests``. Each rule is a function of one file's parsed source that yields what breaks it; a planted
case for each shows that it can.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tensordict import TensorDict

ROOT = Path(__file__).parents[1]
BASE = {"tree", "rng", "model", "autodiff"}
MIDDLE = {"nn_module", "checkpoint", "display", "distributed", "nn", "optim", "envs"}
TOP = {"meta", "interop", "cli"}
CORE = {"torch", "tensordict", "optree", "paramtree", "losses"}

NAMEDTUPLE = {"_fields", "_replace", "_asdict"}  # which are public in spite of their names
# What TensorDict keeps private, by its class and by what an instance is made with.
TENSORDICT_PRIVATE = {
    name
    for name in {*dir(TensorDict), "_tensordict", "_is_locked", "_batch_size", "_td_dim_names"}
    if name.startswith("_") and not name.startswith("__")
} - NAMEDTUPLE


class Import(NamedTuple):
    line: int
    module: str  # "torch.nn", "paramtree.tree"
    inside: bool  # of a function


class File(NamedTuple):
    path: str  # from the repository's root, with slashes
    room: str
    source: ast.Module
    imports: list[Import]


def read(path: str, text: str) -> File:
    parts = Path(path).with_suffix("").parts
    if parts[0] == "paramtree":
        room = parts[1] if len(parts) > 1 and parts[1] != "__init__" else "paramtree"
    else:
        room = "losses" if parts[0] == "losses" else "tests"
    source = ast.parse(text, path)
    return File(path, room, source, list(find_imports(path, source)))


def find_imports(path: str, source: ast.Module) -> Iterator[Import]:
    package = list(Path(path).parent.parts)

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, home(alias.name), inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # a name of the package itself may be a room
                yield Import(node.lineno, home(f"{module}.{alias.name}"), inside)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "paramtree":
            yield Import(node.lineno, home(f"paramtree.{node.attr}"), inside)  # loads on use
        elif isinstance(node, ast.Call) and node.args:
            called, first = ast.unparse(node.func).split(".")[-1], node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield Import(node.lineno, home(str(first.value)), inside)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(source, False)


def top_level_names() -> dict[str, str]:
    """Names that ``paramtree`` re-exports, each with the room that it comes from."""
    source = ast.parse((ROOT / "paramtree/__init__.py").read_text())
    return {
        alias.name: node.module
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


HOMES = top_level_names()


def home(module: str) -> str:
    """``paramtree.vmap`` is ``paramtree.autodiff.vmap``, and ``paramtree.losses`` is ``losses``."""
    parts = module.split(".")
    if parts[0] == "paramtree" and len(parts) > 1:
        if parts[1] == "losses":
            return ".".join(parts[1:])
        if parts[1] in HOMES:
            return ".".join(["paramtree", HOMES[parts[1]], *parts[1:]])
    return module


def rooms(file: File) -> Iterator[tuple[int, str]]:
    """Line and room of each import from the two packages."""
    for line, module, _ in file.imports:
        parts = module.split(".")
        if parts[0] == "losses":
            yield line, "losses"
        elif parts[0] == "paramtree":
            yield line, parts[1] if len(parts) > 1 else "paramtree"


def outside(file: File) -> Iterator[tuple[Import, str]]:
    """Imports of what is neither Python's nor this repository's, each with its top-level name."""
    for found in file.imports:
        name = found.module.split(".")[0]
        if name not in sys.stdlib_module_names and name not in ("paramtree", "losses", "tests"):
            yield found, name


def losses_stand_alone(file: File) -> Iterator[str]:
    if file.room != "losses":
        return
    for line, room in rooms(file):
        if room != "losses":
            yield f"{line}: losses imports paramtree"
    for found, name in outside(file):
        if name not in ("torch", "tensordict"):
            yield f"{found.line}: losses imports {name}"


def base_imports_nothing_above(file: File) -> Iterator[str]:
    if file.room in BASE:
        for line, room in rooms(file):
            if room not in BASE:
                yield f"{line}: {file.room} imports {room}, which is above it"


def optree_in_tree_and_optim(file: File) -> Iterator[str]:
    if file.room not in ("tree", "optim", "tests"):
        for found, name in outside(file):
            if name == "optree":
                yield f"{found.line}: {file.room} imports optree"


def private_tensordict_in_tree(file: File) -> Iterator[str]:
    if file.room == "tree":
        return
    for found, name in outside(file):
        if name == "tensordict" and re.search(r"\._(?!_)", found.module):
            yield f"{found.line}: imports {found.module}"
    for node in ast.walk(file.source):
        if isinstance(node, ast.Attribute) and node.attr in TENSORDICT_PRIVATE:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "torch")):
                yield f"{node.lineno}: touches {node.attr}"
        elif isinstance(node, ast.Constant) and node.value in ("_new_unsafe", "_tensordict"):
            yield f"{node.lineno}: names {node.value}"


def middle_rooms_stay_apart(file: File) -> Iterator[str]:
    if file.room in MIDDLE:
        for line, room in rooms(file):
            if room in MIDDLE - {file.room}:
                yield f"{line}: {file.room} imports {room}, its neighbor"


def nothing_imports_the_top(file: File) -> Iterator[str]:
    if file.room in ("cli", "tests", "paramtree"):
        return
    allowed = {"losses"} if file.room in ("meta", "interop", "losses") else set()
    for line, room in rooms(file):
        if room in {*TOP, "losses", "display"} - allowed - {file.room}:
            yield f"{line}: {file.room} imports {room}"


def optional_packages_stay_out(file: File) -> Iterator[str]:
    if file.room in ("interop", "cli", "tests"):
        return
    for found, name in outside(file):
        if name in CORE or (file.room in ("checkpoint", "display") and found.inside):
            continue
        yield f"{found.line}: {file.room} imports {name}, which is optional"


def top_level_is_lazy(file: File) -> Iterator[str]:
    if file.path != "paramtree/__init__.py":
        return
    for node in file.source.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if (module or ".").split(".")[0] not in sys.stdlib_module_names:
                yield f"{node.lineno}: import paramtree loads {module}"


def outsiders_use_public_names(file: File) -> Iterator[str]:
    if file.room != "tests":
        return
    ours: set[str] = set()
    for node in ast.walk(file.source):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}" if module else alias.name
                if whole.split(".")[0] in ("paramtree", "losses"):
                    ours.add(alias.asname or alias.name.split(".")[0])
                    if re.search(r"(^|\.)_(?!_)", whole):
                        yield f"{node.lineno}: imports {whole}"
    for node in ast.walk(file.source):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            base = ast.unparse(node.value).split(".")[0]
            if base in ours and node.attr not in NAMEDTUPLE:
                yield f"{node.lineno}: reaches {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"(paramtree|losses)(\.\w+)*\._(?!_)\w*", node.value):
                yield f"{node.lineno}: names {node.value}"


def rooms_only_re_export(file: File) -> Iterator[str]:
    """A new algorithm edits nothing but a re-export: a room's __init__ holds no code."""
    exempt = file.room in ("paramtree", "losses", "cli", "tests")
    if exempt or Path(file.path).name != "__init__.py":
        return
    for i, node in enumerate(file.source.body):
        docstring = i == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        aliased = isinstance(node, ast.Import | ast.ImportFrom) and all(
            alias.asname == alias.name for alias in node.names
        )
        if not (docstring or aliased):
            yield f"{node.lineno}: {file.path} holds more than re-exports"


RULES: list[Callable[[File], Iterator[str]]] = [
    losses_stand_alone, base_imports_nothing_above, optree_in_tree_and_optim,
    private_tensordict_in_tree, middle_rooms_stay_apart, nothing_imports_the_top,
    optional_packages_stay_out, top_level_is_lazy, outsiders_use_public_names,
    rooms_only_re_export,
]  # fmt: skip


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("paramtree", "losses", "tests", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix == ".py":
                yield name, path.read_text()
            elif path.suffix == ".ipynb":
                cells = json.loads(path.read_text())["cells"]
                code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
                yield name, re.sub(r"(?m)^([%!].*)$", r"pass  # \1", "\n".join(code))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    broken = [
        f"{path}:{what}"
        for path, text in sources()
        if path != "tests/test_imports.py"  # it names what the rules forbid
        for what in rule(read(path, text))
    ]
    assert not broken, "\n".join(broken)


PLANTED = [
    (losses_stand_alone, "losses/ppo.py", "from paramtree import tree"),
    (losses_stand_alone, "losses/ppo.py", "from paramtree.tree import new"),
    (losses_stand_alone, "losses/ppo.py", "def f():\n    import numpy"),
    (losses_stand_alone, "losses/ppo.py", "import optree"),
    (base_imports_nothing_above, "paramtree/tree/names.py", "from ..nn import linear"),
    (base_imports_nothing_above, "paramtree/rng.py", "from paramtree import optim"),
    (base_imports_nothing_above, "paramtree/model.py", "def f():\n    from . import envs"),
    (base_imports_nothing_above, "paramtree/autodiff.py", "import losses.returns"),
    (optree_in_tree_and_optim, "paramtree/rng.py", "import optree"),
    (optree_in_tree_and_optim, "paramtree/meta/lpg.py", "from optree import tree_map"),
    (private_tensordict_in_tree, "paramtree/nn/linear.py", "x = TensorDict._new_unsafe({})"),
    (private_tensordict_in_tree, "losses/returns.py", "x = td._tensordict['a']"),
    (private_tensordict_in_tree, "losses/returns.py", "x = getattr(td, '_tensordict')"),
    (private_tensordict_in_tree, "paramtree/optim/base.py", "td._is_locked = True"),
    (private_tensordict_in_tree, "paramtree/rng.py", "from tensordict._td import _SubTensorDict"),
    (middle_rooms_stay_apart, "paramtree/optim/base.py", "from paramtree import nn"),
    (middle_rooms_stay_apart, "paramtree/envs/chain.py", "from ..checkpoint import save"),
    (middle_rooms_stay_apart, "paramtree/checkpoint.py", "import paramtree.optim.alias"),
    (nothing_imports_the_top, "paramtree/envs/chain.py", "from losses import gae"),
    (nothing_imports_the_top, "paramtree/nn/linear.py", "from paramtree.losses import gae"),
    (nothing_imports_the_top, "paramtree/optim/base.py", "from ..meta import lpg"),
    (nothing_imports_the_top, "paramtree/meta/lpg.py", "from ..display import show"),
    (nothing_imports_the_top, "paramtree/meta/lpg.py", "from ..interop import torchrl"),
    (nothing_imports_the_top, "paramtree/interop/jax.py", "from ..meta import lpg"),
    (nothing_imports_the_top, "paramtree/rng.py", "importlib.import_module('paramtree.cli')"),
    (nothing_imports_the_top, "paramtree/envs/a.py", "import paramtree\nparamtree.losses.gae"),
    (optional_packages_stay_out, "paramtree/nn/linear.py", "import numpy as np"),
    (optional_packages_stay_out, "paramtree/envs/chain.py", "def f():\n    import gymnasium"),
    (optional_packages_stay_out, "paramtree/checkpoint.py", "from safetensors.torch import save"),
    (optional_packages_stay_out, "paramtree/display.py", "import rich"),
    (top_level_is_lazy, "paramtree/__init__.py", "import torch"),
    (top_level_is_lazy, "paramtree/__init__.py", "from . import tree"),
    (top_level_is_lazy, "paramtree/__init__.py", "from .tree import new"),
    (outsiders_use_public_names, "tests/test_rng.py", "from paramtree.rng import _philox"),
    (outsiders_use_public_names, "tests/losses/test_ppo.py", "import losses._check"),
    (outsiders_use_public_names, "tests/losses/test_ppo.py", "from losses._check import check"),
    (outsiders_use_public_names, "tests/test_lpg.py", "from paramtree import rng\nrng._philox"),
    (outsiders_use_public_names, "tests/test_docs.py", "import paramtree as pt\npt.tree._node()"),
    (outsiders_use_public_names, "notebooks/01.ipynb", "patch('paramtree.rng._philox', 1)"),
    (rooms_only_re_export, "paramtree/nn/__init__.py", "from .linear import linear"),
    (rooms_only_re_export, "paramtree/optim/__init__.py", "def adam(): ..."),
]


@pytest.mark.parametrize(
    ("rule", "path", "text"), PLANTED, ids=[f"{r.__name__}-{p}" for r, p, _ in PLANTED]
)
def test_a_planted_breach_is_found(rule, path, text):
    assert list(rule(read(path, text)))


def test_every_rule_has_a_planted_breach():
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


ALLOWED = [
    (
        "losses/ppo.py",
        "import math\nimport torch\nfrom tensordict import TensorDict\nfrom . import returns",
    ),
    (
        "paramtree/tree/names.py",
        "import optree\nx = TensorDict._new_unsafe({})\nfrom .structure import new",
    ),
    ("paramtree/rng.py", "from . import tree\nfrom paramtree.model import Model"),
    (
        "paramtree/optim/base.py",
        "import optree\nfrom paramtree import vmap\nfrom .combine import chain",
    ),
    (
        "paramtree/checkpoint.py",
        "def f():\n    from safetensors.torch import save\nimport paramtree",
    ),
    (
        "paramtree/meta/lpg.py",
        "from losses import gae\nfrom .. import envs, nn, optim, tree, Model",
    ),
    ("paramtree/interop/jax.py", "import jax\nimport losses\nfrom ..optim import adam"),
    (
        "paramtree/cli/lpg.py",
        "import tyro\nimport rich\nfrom ..meta import lpg\nfrom ..display import x",
    ),
    ("paramtree/nn/__init__.py", '"""Layers."""\nfrom .linear import linear as linear'),
    (
        "tests/test_x.py",
        "import numpy\nfrom paramtree import rng\nrng.key(0)._replace\nrng.__name__",
    ),
    ("losses/returns.py", "x = self._batch_size\ntorch._foreach_mul\nPoint()._replace(a=1)"),
]


@pytest.mark.parametrize(("path", "text"), ALLOWED, ids=[path for path, _ in ALLOWED])
def test_what_is_allowed_passes(path, text):
    file = read(path, text)
    assert [what for rule in RULES for what in rule(file)] == []


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds this repository after its working folder."""
    code = f"import sys; sys.path.insert(1, {str(ROOT)!r}); {code}"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_paramtree_loads_nothing():
    result = python("import paramtree; print(paramtree.__version__, 'torch' in sys.modules)")
    assert (result.stdout.split()[1:], result.stderr) == (["False"], "")


def test_rooms_load_no_optional_package_and_losses_no_paramtree():
    optional = [
        "matplotlib",
        "rich",
        "tyro",
        "safetensors",
        "gymnasium",
        "torchrl",
        "torchopt",
        "jax",
    ]
    result = python(
        "import losses; assert 'paramtree' not in sys.modules; import paramtree; "
        "[getattr(paramtree, name) for name in dir(paramtree)]; "
        f"print([name for name in {optional} if name in sys.modules])"
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_top_level_names_are_what_the_type_checker_sees():
    import paramtree

    source = ast.parse((ROOT / "paramtree/__init__.py").read_text())
    seen = {
        alias.asname
        for block in source.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert seen | {"__version__"} == set(dir(paramtree))
    for name in dir(paramtree):
        assert getattr(paramtree, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'linear'"):
        _ = paramtree.linear  # pyright: ignore[reportAttributeAccessIssue]


def test_losses_is_one_package_by_two_roads():
    import losses
    import paramtree

    assert paramtree.losses is losses


@pytest.mark.parametrize("place", ["losses.py", "losses/__init__.py"])
def test_a_foreign_losses_module_is_named(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine = 1\n")
    result = python("import paramtree; paramtree.losses", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ImportError: paramtree.losses: ")
    assert str(tmp_path / place) in result.stderr.splitlines()[-1]
