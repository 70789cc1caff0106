"""Trees: what TensorDict lacks for named, immutable trees of tensors.

A *tree* is a nested ``TensorDict``; its *leaves* are tensors, each with a *path*, the tuple of
names that leads to it. Sub-trees may have batch sizes of their own, ``{meta: [], policy:
[n_tasks]}``. Every function here is pure, and every tree that it gives is locked. Trees are the
same where their names are, whatever the order in which the names came; leaves are listed with the
names of each level sorted. Paths are strings split at dots (``"policy.linear_0.weight"``) or
tuples; a name that holds a dot needs the tuple.
"""

from .algebra import map as map
from .algebra import map_with_path as map_with_path
from .algebra import norm as norm
from .algebra import ravel as ravel
from .algebra import root as root
from .algebra import vdot as vdot
from .algebra import where as where
from .arithmetic import add as add
from .arithmetic import allclose as allclose
from .arithmetic import cast as cast
from .arithmetic import random_like as random_like
from .arithmetic import scale as scale
from .arithmetic import sub as sub
from .arithmetic import zeros_like as zeros_like
from .donation import movable as movable
from .donation import moved as moved
from .names import exclude as exclude
from .names import merge as merge
from .names import partition as partition
from .names import replace as replace
from .names import select as select
from .rows import concat as concat
from .rows import drop as drop
from .rows import stack as stack
from .rows import take as take
from .rows import unstack as unstack
from .rows import with_axis as with_axis
from .rows import without_axis as without_axis
from .structure import Structure as Structure
from .structure import as_tree as as_tree
from .structure import entries as entries
from .structure import flatten as flatten
from .structure import leaves as leaves
from .structure import leaves_like as leaves_like
from .structure import lock as lock
from .structure import new as new
from .structure import parse_path as parse_path
from .structure import paths as paths
from .structure import rebuild as rebuild
from .structure import require_same as require_same
from .structure import require_tree as require_tree
from .structure import shared_batch_size as shared_batch_size
from .structure import show_path as show_path
from .structure import unflatten as unflatten
from .structure import values as values
