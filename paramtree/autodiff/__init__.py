"""Derivatives and batching of functions of trees: ``grad``, ``vmap`` and what goes with them."""

from .batching import vmap as vmap
from .checking import check_grads as check_grads
from .gradients import checkpoint as checkpoint
from .gradients import detach as detach
from .gradients import gnvp as gnvp
from .gradients import grad as grad
from .gradients import hvp as hvp
from .gradients import value_and_grad as value_and_grad
