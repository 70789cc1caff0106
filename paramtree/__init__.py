"""Parameters, states and trajectories as named trees; models, losses and updates as pure functions.

Every name is loaded when it is first used, so that ``import paramtree`` alone loads nothing, torch
included. ``paramtree.losses`` is the top-level package ``losses`` by another road.

.. include:: README.md
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import losses as losses

    from . import autodiff as autodiff
    from . import checkpoint as checkpoint
    from . import display as display
    from . import envs as envs
    from . import meta as meta
    from . import model as model
    from . import nn as nn
    from . import nn_module as nn_module
    from . import optim as optim
    from . import rng as rng
    from . import tree as tree
    from .autodiff import check_grads as check_grads
    from .autodiff import detach as detach
    from .autodiff import grad as grad
    from .autodiff import hvp as hvp
    from .autodiff import value_and_grad as value_and_grad
    from .autodiff import vmap as vmap
    from .display import load_ipython_extension as load_ipython_extension
    from .display import show as show
    from .display import summary as summary
    from .display import unload_ipython_extension as unload_ipython_extension
    from .model import Model as Model
    from .model import compose as compose
    from .model import methods as methods
    from .model import parallel as parallel
    from .model import td_model as td_model
    from .model import with_next as with_next
    from .nn_module import from_module as from_module
    from .nn_module import to_module as to_module

__version__ = "0.1.0"

_ROOMS = (
    "autodiff",
    "checkpoint",
    "display",
    "envs",
    "meta",
    "model",
    "nn",
    "nn_module",
    "optim",
    "rng",
    "tree",
)
_NAMES = {
    "Model": "model",
    "check_grads": "autodiff",
    "compose": "model",
    "detach": "autodiff",
    "grad": "autodiff",
    "from_module": "nn_module",
    "hvp": "autodiff",
    "load_ipython_extension": "display",
    "methods": "model",
    "parallel": "model",
    "show": "display",
    "summary": "display",
    "td_model": "model",
    "to_module": "nn_module",
    "unload_ipython_extension": "display",
    "value_and_grad": "autodiff",
    "vmap": "autodiff",
    "with_next": "model",
}


def __getattr__(name: str) -> Any:
    """Load a room, or a name from the room that defines it, on first use (PEP 562)."""
    if name == "losses":
        return _losses()
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", "losses", *_ROOMS, *_NAMES])


def _losses() -> ModuleType:
    """The package ``losses`` that was installed with this one, not another module of that name."""
    found = import_module("losses")
    path = Path(found.__file__ or next(iter(found.__path__), "nowhere"))
    if path.name != "__init__.py" or path.parent.parent != Path(__file__).parent.parent:
        raise ImportError(
            f"paramtree.losses: Python finds another module named 'losses' first, {str(path)!r}, "
            "and not the package that comes with paramtree; rename that one, or start Python where "
            "it is not on the path",
            name="losses",
            path=str(path),
        )
    return found
