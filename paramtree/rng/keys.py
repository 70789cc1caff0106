"""Keys: made of a seed, and of one another.

A key (seed, offset) owns the Philox counters

    words 0, 1   offset + i   i counts the blocks of four words that a draw consumes
    words 2, 3   data         62 bits: what `split` and `fold_in` fold in; 0 for a draw
                 kind         the 2 highest bits: 0 a draw, 1 an integer, 2 a name

under the Philox key `seed`, so no draw ever uses a counter of a derivation, nor an integer one of a
name. The four words of a derivation are the new key, seed and offset: 128 random bits.
"""

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from .philox import WORD, is_readable, rounds, rounds_of_ints

_INTEGER, _NAME = 1, 2  # kinds of derivation
_DATA_BITS = 62
_FEW = 24  # up to so many blocks, Python's integers are faster than tensors


def key(seed: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Makes the key (seed, 0).

    Args:
        seed: an integer in [-2^63, 2^63), or an int64 tensor [*batch] of seeds.
        device: where the key, and so all that is drawn from it, lives; default: the seed's, or
            torch's default device.

    Returns:
        int64 [2], or [*batch, 2].

    Raises:
        TypeError: seed is not an integer.
        ValueError: seed does not fit into 64 bits.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"key: seed has dtype {seed.dtype}, expected torch.int64 or an int")
        seed = seed if device is None else seed.to(device)
        return torch.stack((seed, torch.zeros_like(seed)), -1)
    if not isinstance(seed, int):  # what is one stays a variable of compiled code
        try:
            seed = operator.index(seed)
        except TypeError:
            raise TypeError(f"key: seed is {seed!r}, expected an int or an int64 tensor") from None
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"key: seed is {seed}, expected an integer in [-2**63, 2**63)")
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def split(key: Tensor, num: int = 2) -> Tensor:
    """Makes `num` independent keys of one: `split(key, num)[i]` is `fold_in(key, i)`.

    Args:
        key: int64 [*batch, 2].
        num: how many, at least 1.

    Returns:
        int64 [num, *batch, 2].

    Raises:
        TypeError: key or num is of another kind.
        ValueError: the key's last dim is not 2, or num is below 1.
    """
    check_key("split", key)
    if not isinstance(num, int):
        raise TypeError(f"split: num is a {type(num).__name__}, expected an int")
    if num < 1:
        raise ValueError(f"split: num is {num}, expected at least 1")
    if num <= _FEW and key.dim() == 1 and is_readable(key):
        return _derive_few(key, range(num), _INTEGER)
    data = torch.arange(num, device=key.device).view(num, *[1] * (key.dim() - 1))
    return _derive(key, data, _INTEGER)


def fold_in(key: Tensor, data: int | str | Tensor) -> Tensor:
    """Derives a key from a key and an integer or a name; the two kinds never give the same key.

    A name is hashed by 64-bit FNV-1a over its utf-8 bytes, the top two bits folded onto the rest.

    Args:
        key: int64 [*batch, 2].
        data: an int in [0, 2^62), a name, or an int64 tensor (read modulo 2^62) that broadcasts
            with *batch.

    Returns:
        int64 [*batch, 2], with *batch broadcast against the shape of a tensor `data`.

    Raises:
        TypeError: key or data is of another kind.
        ValueError: the key's last dim is not 2, or data is out of range or does not broadcast.

    Source of the hash: Fowler, Noll, Vo, Eastlake (2012), The FNV non-cryptographic hash algorithm.
    """
    check_key("fold_in", key)
    if isinstance(data, Tensor):
        _check_tensor(data, key)
        return _derive(key, data, _INTEGER)
    kind = _INTEGER
    if isinstance(data, str):
        data, kind = _hash(data), _NAME
    elif not isinstance(data, int):
        got = type(data).__name__
        raise TypeError(f"fold_in: data is a {got}, expected an int, a str or an int64 tensor")
    if not 0 <= data < 1 << _DATA_BITS:
        raise ValueError(f"fold_in: data is {data}, expected an int in [0, 2**{_DATA_BITS})")
    if key.dim() == 1 and is_readable(key):
        return _derive_few(key, (data,), kind)[0]
    return _derive(key, torch.full_like(key[..., 0], data), kind)


def blocks(key: Tensor, lead: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Draws the first `count` blocks of four words of each key.

    Args:
        key: int64 [*batch, 2].
        lead: a shape that *batch expands to.
        count: of blocks.

    Returns:
        The words (0, 2) and (1, 3) of the blocks, each int64 [2, *lead, count]; the caller's own.
    """
    if key.dim() == 1 and count <= _FEW and is_readable(key):
        seed, offset = key.tolist()
        places = range(offset, offset + count)
        words = [rounds_of_ints((i & WORD, i >> 32 & WORD, 0, 0), seed) for i in places]
        even, odd = torch.tensor(words, dtype=torch.int64).view(count, 2, 2).unbind(-1)
        return even.t(), odd.t()
    key = key.expand(*lead, 2)
    seed, place = key[..., :1], key[..., 1:] + torch.arange(count, device=key.device)
    zero = torch.zeros_like(place)
    even, odd = torch.stack((place & WORD, zero)), torch.stack((place >> 32 & WORD, zero))
    return rounds(even, odd, seed & WORD, seed >> 32 & WORD)


def check_key(function: str, key: Tensor) -> None:
    """Refuses what is not a key, in the name of the function that got it."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        got = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"{function}: key is {got}, expected an int64 tensor from rng.key or split")
    if key.dim() == 0 or key.shape[-1] != 2:
        got = tuple(key.shape)
        raise ValueError(f"{function}: key has shape {got}, expected [2] or [*batch, 2]")


def _derive(key: Tensor, data: Tensor, kind: int) -> Tensor:
    """The keys that data [*any] of a kind gives, int64 [*batch broadcast with *any, 2]."""
    seed, offset, data = torch.broadcast_tensors(*key.unbind(-1), data)
    high = data >> 32 & (1 << _DATA_BITS - 32) - 1 | kind << _DATA_BITS - 32
    even = torch.stack((offset & WORD, data & WORD))
    odd = torch.stack((offset >> 32 & WORD, high))
    even, odd = rounds(even, odd, seed & WORD, seed >> 32 & WORD)
    return (even | odd << 32).movedim(0, -1)


def _derive_few(key: Tensor, data: Iterable[int], kind: int) -> Tensor:
    """The same for a single key whose values can be read, in Python's integers."""
    seed, offset = key.tolist()
    start, keys = (offset & WORD, offset >> 32 & WORD), []
    for number in data:
        place = number | kind << _DATA_BITS
        words = rounds_of_ints((*start, place & WORD, place >> 32), seed)
        keys.append([_signed(words[0] | words[1] << 32), _signed(words[2] | words[3] << 32)])
    return torch.tensor(keys, dtype=torch.int64)


def _signed(word: int) -> int:
    """The signed 64-bit integer of the same bits as an unsigned one."""
    return word - 2**64 if word >= 2**63 else word


def _hash(name: str) -> int:
    """64-bit FNV-1a of a name's utf-8 bytes, folded to the bits of `data`."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value >> _DATA_BITS ^ value & (1 << _DATA_BITS) - 1


def _check_tensor(data: Tensor, key: Tensor) -> None:
    if data.dtype != torch.int64:
        raise TypeError(f"fold_in: data has dtype {data.dtype}, expected an int64 tensor")
    got, batch = tuple(data.shape), tuple(key.shape[:-1])
    if any(a != b and 1 not in (a, b) for a, b in zip(got[::-1], batch[::-1], strict=False)):
        raise ValueError(
            f"fold_in: data has shape {got}, expected one that broadcasts with {batch} (the batch "
            f"of key, of shape {tuple(key.shape)})"
        )
