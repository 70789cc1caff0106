"""Learned rules that come with the library.

    >>> from paramtree import envs, meta
    >>> rule, params = load_rule("lpg-small")
    >>> world, made = envs.level_distribution("small"), rule_card("lpg-small")["agents"]
    >>> agents = meta.lpg_population(world, 1, **made).habitat

A rule is two files in ``weights``: ``NAME.safetensors``, and the card ``NAME.json``:

    network     what ``lpg_network`` was made with, the activation by its name in torch
    rule        what ``lpg_rule`` was made with
    agents      what ``lpg_population`` was made with: the agents that the rule was trained on
    options     all options of the run that trained it, as the command line has them
    command     the words that make this run
    steps       meta-steps that it was trained for
    results     how good it was on levels that were held out
    versions    of the libraries
    sha256      of the other file

Nothing but torch is needed to read them.
"""

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .. import rng, tree
from ..autodiff.gradients import kind_of
from .lpg import lpg_network, lpg_rule
from .update_rule import UpdateRule

WEIGHTS = Path(__file__).parent / "weights"
_DTYPES = {"F32": torch.float32, "F64": torch.float64}
_ENTRIES = {"network": dict, "rule": dict, "agents": dict, "options": dict, "sha256": str}
_File = str | os.PathLike[str]


def load_rule(
    name: _File, *, device: torch.device | str | None = None
) -> tuple[UpdateRule, TensorDict]:
    """A learned rule, ready to train agents.

    Args:
        name: name of one that comes with the library, or the path of a card, ``*.json``, with the
            rule's parameters beside it.
        device: where the parameters go; the CPU when None.

    Returns:
        ``(rule, params)``.

    Raises:
        ValueError: there is no rule of that name, the card is damaged, the files don't belong
            together, or the parameters aren't those of the card's network.
        TypeError: the name is no text and no path.
        OSError: a file can't be read.
    """
    path, card = _card("load_rule", name)
    try:
        rule = _made(card)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_rule: name is {str(path)!r}, expected a card whose rule can be made: {error}"
        ) from error
    blob = path.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(blob).hexdigest() != card["sha256"]:
        beside = str(path.with_suffix(".safetensors"))
        raise ValueError(
            f"load_rule: {beside!r} is not the file that its card is of; its SHA-256 differs"
        )
    found, first = _tensors(blob), rule.init(rng.key(0))[0]
    names = [".".join(path) for path in tree.paths(first)]
    wanted = dict(zip(names, tree.leaves(first), strict=True))
    for text in sorted(wanted.keys() | found.keys()):
        shapes = [tuple(x[text].shape) if text in x else None for x in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"load_rule: {text} has shape {shapes[0]}, expected {shapes[1]} (from the card)"
            )
    _, structure = tree.flatten(first)
    return rule, tree.unflatten(structure, [found[name].to(device or "cpu") for name in names])


def rule_card(name: _File) -> dict[str, Any]:
    """Where a learned rule comes from, and how good it is.

    Args:
        name: as in ``load_rule``.

    Returns:
        The card, as this file's first lines have it.

    Raises:
        ValueError: there is no rule of that name, or the card is damaged.
        TypeError: the name is no text and no path.
        OSError: the card can't be read.
    """
    return _card("rule_card", name)[1]


def _card(fn: str, name: _File) -> tuple[Path, dict[str, Any]]:
    """A card and its path."""
    if not isinstance(name, str | os.PathLike):
        raise TypeError(
            f"{fn}: name is {kind_of(name)}, expected the name of a rule or the path of a card"
        )
    text = os.fspath(name)
    if text.endswith(".json"):
        path = Path(text)
    else:
        path, known = WEIGHTS / f"{text}.json", sorted(p.stem for p in WEIGHTS.glob("*.json"))
        if text not in known:
            near = difflib.get_close_matches(text, known, n=1, cutoff=0.0)
            raise ValueError(
                f"{fn}: name is {text!r}, expected one of {', '.join(known) or 'none'}"
                + (f"; the nearest is {near[0]!r}" if near else "")
                + "; or the path of a card, *.json"
            )
    try:
        card = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{fn}: name is {str(path)!r}, expected a card, and its text is no JSON: {error}"
        ) from error
    has = card if isinstance(card, dict) else {}
    missing = [entry for entry, kind in _ENTRIES.items() if not isinstance(has.get(entry), kind)]
    if missing:
        raise ValueError(
            f"{fn}: name is {str(path)!r}, expected a card, and it lacks {', '.join(missing)}"
        )
    return path, card


def _made(card: dict[str, Any]) -> UpdateRule:
    """The rule of a card."""
    chosen = dict(card["network"])
    activation = chosen.pop("activation", None)
    chosen["activation"] = None if activation is None else getattr(torch, activation)
    return lpg_rule(lpg_network(**chosen), **card["rule"])


def _tensors(blob: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name: a length, a header in JSON, and numbers."""
    start = 8 + int.from_bytes(blob[:8], "little")
    header, data, found = json.loads(blob[8:start]), bytearray(blob[start:]), {}
    for name, entry in header.items():
        if name != "__metadata__":
            (first, last), dtype = entry["data_offsets"], _DTYPES[entry["dtype"]]
            count = (last - first) // dtype.itemsize
            numbers = torch.frombuffer(data, dtype=dtype, count=count, offset=first)
            found[name] = numbers.reshape(entry["shape"]).clone()
    return found
