"""Optimizers: pairs of pure functions, composed by name, differentiable in every hyper-parameter.

optimizer = chain(clip=clip_by_global_norm(1.0), adam=scale_by_adam(), lr=scale(-1e-3))
state = optimizer.init(params)
updates, state = optimizer.update(grads, state, params)
params = apply_updates(params, updates)                 # state["adam", "mu"] has the params' names
"""

from .alias import adam as adam
from .alias import adamw as adamw
from .alias import sgd as sgd
from .base import Transform as Transform
from .base import apply_updates as apply_updates
from .base import stateless as stateless
from .combine import chain as chain
from .combine import partition as partition
from .schedule import constant as constant
from .schedule import linear as linear
from .transform import add_decayed_weights as add_decayed_weights
from .transform import clip_by_global_norm as clip_by_global_norm
from .transform import scale as scale
from .transform import scale_by_adam as scale_by_adam
from .transform import scale_by_schedule as scale_by_schedule
from .transform import trace as trace
