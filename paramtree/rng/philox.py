"""Philox 4x32-10: a bijection of 128-bit counters for each 64-bit key, in int64 tensor arithmetic.

A counter is four words of 32 bits, (c0, c1, c2, c3), and a key two. A round multiplies c0 and c2 by
constants, swaps and mixes the halves of the products into c1 and c3, and moves the key on. Words
sit in int64 tensors, since torch has next to no arithmetic for unsigned ones; (c0, c2) are held as
one tensor [2, *any], `even`, and (c1, c3) as another, `odd`.

Source: Salmon, Moraes, Dror, Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, section 3.
"""

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

WORD = 0xFFFFFFFF  # a mask
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: Tensor, words: Tensor) -> Tensor:
    """Maps counters to random words.

    Args:
        counter: int64 [*any, 4] of 32-bit words, the lowest first.
        words: int64 [2] or [*any, 2], Philox's key as two 32-bit words (not a key of this library).

    Returns:
        int64 [*any, 4] of 32-bit words.

    Raises:
        TypeError: a tensor is not int64.
        ValueError: the shapes are not as above.
    """
    for name, tensor, size in (("counter", counter, 4), ("words", words, 2)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"philox4x32: {name} is {got}, expected an int64 tensor")
        if tensor.dim() == 0 or tensor.shape[-1] != size:
            got = tuple(tensor.shape)
            raise ValueError(f"philox4x32: {name} has shape {got}, expected [*any, {size}]")
    if words.dim() > 1 and words.shape[:-1] != counter.shape[:-1]:
        got, wanted = tuple(words.shape), (*counter.shape[:-1], 2)
        raise ValueError(
            f"philox4x32: words has shape {got}, expected (2,) or {wanted} (from counter)"
        )
    even, odd = counter[..., 0::2].movedim(-1, 0), counter[..., 1::2].movedim(-1, 0)
    key0, key1 = words.expand(*counter.shape[:-1], 2).unbind(-1)
    even, odd = rounds(even.clone(), odd.clone(), key0, key1)
    return torch.stack((even[0], odd[0], even[1], odd[1]), -1)


def rounds(even: Tensor, odd: Tensor, key0: Tensor, key1: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the ten rounds, both halves at once.

    The halves come out of a round in the order (2, 0) and (3, 1), so every second round takes its
    constants swapped and swaps back. A multiplier m >= 2^31 enters as m - 2^32, so that no product
    leaves int64: what the high word lacks then is just the other factor, `even`.

    Args:
        even: int64 [2, *any], counter words 0 and 2; given up to be overwritten.
        odd: int64 [2, *any], counter words 1 and 3; given up to be overwritten.
        key0: int64 [*any], or what broadcasts to it, the first word of the key.
        key1: the second.

    Returns:
        The words (0, 2) and (1, 3) of the result, each int64 [2, *any].
    """
    ones, device = [1] * (even.dim() - 1), even.device
    factors = [[m - 2**32 for m in order] for order in (_MULTIPLIERS, _MULTIPLIERS[::-1])]
    factor = torch.tensor(factors, device=device).view(2, 2, *ones).unbind(0)
    weyl = [[r * w for w in (_WEYL if r % 2 else _WEYL[::-1])] for r in range(_ROUNDS)]
    steps = torch.tensor(weyl, device=device).view(_ROUNDS // 2, 2, 2, *ones)
    keys = torch.stack((key1, key0, key0, key1)).unflatten(0, (2, 2))
    keys = ((keys + steps) & WORD).flatten(0, 1)  # [rounds, 2, *any]
    round_keys = keys.unbind(0)
    if not (is_plain(even) and is_plain(key0)):  # few operations, and no writing: fast to compile
        for r, round_key in enumerate(round_keys):
            product = even * factor[r % 2]
            even, odd = (product >> 32) + even ^ odd.flip(0) ^ round_key, product & WORD
        return even, odd
    spare = torch.empty_like(even), torch.empty_like(odd)
    for r, round_key in enumerate(round_keys):
        high = torch.mul(even, factor[r % 2], out=spare[0])
        low = torch.bitwise_and(high, WORD, out=spare[1])
        high >>= 32
        high += even
        (first, second), (odd_first, odd_second) = high.unbind(0), odd.unbind(0)
        first ^= odd_second
        second ^= odd_first
        spare = even, odd
        even, odd = torch.bitwise_xor(high, round_key, out=high), low
    return even, odd


def rounds_of_ints(counter: tuple[int, ...], seed: int) -> tuple[int, int, int, int]:
    """Runs the same on one counter in Python's integers: 20 times as fast as a tensor of one.

    Args:
        counter: four 32-bit words.
        seed: the key, as one integer of which the low 64 bits count.

    Returns:
        Four 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32 & WORD
    (m0, m1), (w0, w1) = _MULTIPLIERS, _WEYL
    for _ in range(_ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & WORD, p0 >> 32 ^ c3 ^ k1, p0 & WORD
        k0, k1 = k0 + w0 & WORD, k1 + w1 & WORD
    return c0, c1, c2, c3


def is_plain(tensor: Tensor) -> bool:
    """Tells whether a tensor is neither traced by a compiler nor wrapped by a transform."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor:
        return False
    return not is_functorch_wrapped_tensor(tensor)


def is_readable(tensor: Tensor) -> bool:
    """Tells whether a tensor's values can be read, and at no cost."""
    return tensor.device.type == "cpu" and is_plain(tensor)
