"""Draws of numbers, from a key and not from the global generator.

Distributions, dtypes and gradients are torch's: none reaches what a distribution is made of, but in
``torch.distributions``, where samples are computed from draws. What is drawn by rejection, as often
as it takes, can't come from a key, and is refused.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..rng.philox import is_readable
from .batching import is_transformed, lifted
from .rows import Rows, given

ROWS = Rows()


# ------------------------------------------------------------------------------- numbers in place


@ROWS.of(Tensor.uniform_)
def _uniform_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    low, high, generator = given(args, kwargs, {"from": 0.0, "to": 1.0, "generator": None})
    key = guard.key(func, generator, x)
    return fill(guard, func, x, rng.uniform(key, x.shape, low, high, dtype=x.dtype))


@ROWS.of(Tensor.normal_)
def _normal_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    mean, std, generator = given(args, kwargs, {"mean": 0.0, "std": 1.0, "generator": None})
    key = guard.key(func, generator, x)
    return fill(guard, func, x, rng.normal(key, x.shape, mean, std, dtype=x.dtype))


@ROWS.of(Tensor.log_normal_)
def _log_normal_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    mean, std, generator = given(args, kwargs, {"mean": 1.0, "std": 2.0, "generator": None})
    key = guard.key(func, generator, x)
    return fill(guard, func, x, rng.normal(key, x.shape, mean, std, dtype=x.dtype).exp())


@ROWS.of(Tensor.exponential_)
def _exponential_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    rate, generator = given(args, kwargs, {"lambd": 1.0, "generator": None})
    unit = rng.uniform(guard.key(func, generator, x), x.shape, dtype=torch.float64)
    value = (-torch.log1p(-unit) / rate).to(x.dtype)
    return fill(guard, func, x, value.clamp_min(torch.finfo(x.dtype).tiny))  # never 0, as torch's


@ROWS.of(Tensor.cauchy_)
def _cauchy_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    wanted = {"median": 0.0, "sigma": 1.0, "generator": None}
    median, sigma, generator = given(args, kwargs, wanted)
    unit = rng.uniform(guard.key(func, generator, x), x.shape, dtype=torch.float64)
    return fill(guard, func, x, median + sigma * torch.tan(math.pi * (unit - 0.5)))


@ROWS.of(Tensor.geometric_)
def _geometric_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    p, generator = given(args, kwargs, {"p": None, "generator": None})
    unit = rng.uniform(guard.key(func, generator, x), x.shape, dtype=torch.float64)
    return fill(guard, func, x, 1.0 + torch.floor(torch.log1p(-unit) / math.log1p(-p)))


@ROWS.of(Tensor.random_)
def _random_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    first, second, generator = given(args, kwargs, {"from": None, "to": None, "generator": None})
    if first is None and second is None:
        guard.refuse(func, "over all values of a dtype; give it a range")
    low, high = (0, first or 0) if second is None else (first or 0, second)
    return fill(guard, func, x, rng.randint(guard.key(func, generator, x), x.shape, low, high))


@ROWS.of(Tensor.bernoulli_)
def _bernoulli_(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    p, generator = given(args, kwargs, {"p": 0.5, "generator": None})
    return fill(guard, func, x, coin(guard.key(func, generator, x), p, x.shape))


@ROWS.of(
    torch.empty,
    torch.empty_like,
    torch.zeros,
    torch.zeros_like,
    Tensor.new,
    Tensor.new_empty,
    Tensor.new_zeros,
)
def _space(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Space that a draw may go into, on the axes of vmap that the key is on."""
    x, key = func(*args, **kwargs), guard.after
    return lifted([x], [key])[0] if key is not None and is_transformed(key) else x


def fill(guard: Any, func: Any, x: Tensor, value: Tensor) -> Tensor:
    """Writes what was drawn, in the name of the function that would have."""
    guard.writes(func, (x,), {})
    return x.copy_(value)


# ------------------------------------------------------------------------------------ new numbers


@ROWS.of(torch.rand)
def _rand(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    key, dtype = guard.key(func, kwargs.get("generator")), _dtype(kwargs)
    return _made(rng.uniform(key, _size(args, kwargs), dtype=dtype), kwargs)


@ROWS.of(torch.randn)
def _randn(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    key, dtype = guard.key(func, kwargs.get("generator")), _dtype(kwargs)
    return _made(rng.normal(key, _size(args, kwargs), dtype=dtype), kwargs)


@ROWS.of(torch.rand_like)
def _rand_like(guard: Any, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
    key, like = guard.key(func, kwargs.get("generator"), x), _like(x, kwargs)
    return _made(rng.uniform(key, x.shape, dtype=like["dtype"]), like)


@ROWS.of(torch.randn_like)
def _randn_like(guard: Any, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
    key, like = guard.key(func, kwargs.get("generator"), x), _like(x, kwargs)
    return _made(rng.normal(key, x.shape, dtype=like["dtype"]), like)


@ROWS.of(torch.randint)
def _randint(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    ints = [value for value in args if isinstance(value, int)]
    named = [kwargs[name] for name in ("low", "high") if name in kwargs]
    low, high = (0, *ints, *named)[-2:]
    size = kwargs.get("size", args[-1] if args else ())
    value = rng.randint(guard.key(func, kwargs.get("generator")), tuple(size), low, high)
    return _made(value.to(kwargs.get("dtype") or torch.int64), kwargs)


@ROWS.of(torch.randint_like)
def _randint_like(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    named = [kwargs[name] for name in ("low", "high") if name in kwargs]
    low, high = (0, *args, *named)[-2:]
    key, like = guard.key(func, kwargs.get("generator"), x), _like(x, kwargs)
    value = rng.randint(key, x.shape, low, high)
    return _made(value.to(like["dtype"]), like)


@ROWS.of(torch.randperm)
def _randperm(guard: Any, func: Any, n: int, **kwargs: Any) -> Tensor:
    value = rng.permutation(guard.key(func, kwargs.get("generator")), n)
    return _made(value.to(kwargs.get("dtype") or torch.int64), kwargs)


@ROWS.of(torch.normal)
def _normal(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    mean, std, size = given(args, kwargs, {"mean": 0.0, "std": 1.0, "size": None})
    near = next((value for value in (mean, std) if isinstance(value, Tensor)), None)
    key = guard.key(func, kwargs.get("generator"), near)
    mean, std = (v.detach() if isinstance(v, Tensor) else float(v) for v in (mean, std))
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    if not tensors:
        return _made(rng.normal(key, tuple(size), mean, std, dtype=_dtype(kwargs)), kwargs)
    shape = torch.broadcast_shapes(*[value.shape for value in tensors])
    dtype = torch.promote_types(tensors[0].dtype, tensors[-1].dtype)
    value = rng.normal(key, shape, mean, std, dtype=dtype)
    return _made(value, {"device": value.device, **kwargs})


@ROWS.of(torch.bernoulli, Tensor.bernoulli)
def _bernoulli(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    p, generator = given(args, kwargs, {"p": None, "generator": None})
    value = coin(guard.key(func, generator, x), x.detach() if p is None else p, x.shape)
    return _made(value.to(x.dtype), {"device": x.device, **kwargs})


@ROWS.of(torch.multinomial, Tensor.multinomial)
def _multinomial(guard: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    wanted = {"num_samples": 1, "replacement": False, "generator": None}
    n, replacement, generator = given(args, kwargs, wanted)
    key, logits = guard.key(func, generator, x), x.detach().double().log()  # [*lead, K]
    if replacement or n == 1:
        return rng.categorical(key, logits.unsqueeze(-2), (*logits.shape[:-1], n))
    if is_readable(x) and not bool(((x > 0).sum(-1) >= n).all()):
        raise ValueError(
            f"multinomial: a row of input has fewer than {n} positive entries, expected as many as "
            "num_samples, since replacement is False"
        )
    unit = rng.uniform(key, logits.shape, dtype=torch.float64)
    race = logits - torch.log(-torch.log1p(-unit))  # the first n in a race of exponentials
    return torch.topk(race, n, -1).indices


def coin(key: Tensor, p: float | Tensor, shape: Sequence[int]) -> Tensor:
    """Draws True with probability p."""
    return rng.bernoulli(key, p.detach() if isinstance(p, Tensor) else p, tuple(shape))


def _size(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, ...]:
    size = args or kwargs.get("size", ())
    whole = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    return tuple(whole)


def _dtype(kwargs: dict[str, Any]) -> torch.dtype:
    return kwargs.get("dtype") or torch.get_default_dtype()


def _like(x: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in kwargs.items() if value is not None}
    return {"dtype": x.dtype, "device": x.device, **known}


def _made(value: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """What was drawn, where and how a call of a factory of torch wants it."""
    device = kwargs.get("device")
    value = value.to(torch.empty(0).device if device is None else device)
    if kwargs.get("requires_grad"):
        value.requires_grad_()
    return value if kwargs.get("out") is None else kwargs["out"].copy_(value)


# --------------------------------------------------------------------------------------- refused


@ROWS.of(torch._standard_gamma, torch._sample_dirichlet, torch.poisson, torch.binomial)
def _rejection(guard: Any, func: Any, *args: Any, **kwargs: Any) -> None:
    guard.refuse(func, "by rejection, as often as it takes, which no key can be given to")


@ROWS.of(torch.svd_lowrank, torch.pca_lowrank, torch.lobpcg)
def _sketch(guard: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Python inside, whose draws are seen, but not where it's compiled."""
    if torch.compiler.is_compiling():
        guard.refuse(func, "where compiled code hides it; don't compile the call")
    return func(*args, **kwargs)


@ROWS.of(torch._VF._fused_dropout)
def _internal(guard: Any, func: Any, *args: Any, **kwargs: Any) -> None:
    guard.refuse(func, "by an operator that no key can be given to")


_INTERNAL = (  # operators that draw and have no function of torch
    "cauchy exponential geometric log_normal normal_functional random uniform rrelu_with_noise "
    "rrelu_with_noise_ rrelu_with_noise_functional"
)
ROWS.update({name: ((name, _internal),) for name in _INTERNAL.split()})
