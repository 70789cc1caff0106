"""Splittable random keys, and what is drawn from them.

A key is an int64 tensor [2] = (seed, offset), or [*batch, 2]: data like any other, so keys stack,
index, vmap and compile. Nothing here reads or moves a global generator: the same key always gives
the same numbers. Words and uniforms are bit-equal on every device, eager, vmapped and compiled; the
other distributions agree to 2 ulp.
"""

from .distributions import bernoulli as bernoulli
from .distributions import bits as bits
from .distributions import categorical as categorical
from .distributions import normal as normal
from .distributions import permutation as permutation
from .distributions import randint as randint
from .distributions import truncated_normal as truncated_normal
from .distributions import uniform as uniform
from .keys import fold_in as fold_in
from .keys import key as key
from .keys import split as split
from .philox import philox4x32 as philox4x32
