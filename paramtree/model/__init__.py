"""The contract: a model is a pair of pure functions, at every scale.

    init(key) -> (params, buffers)
    apply(params, buffers, batch) -> (out, buffers)

A layer takes a tensor or a tuple of tensors and gives a tensor or a tuple. A model takes a
TensorDict and gives a new one with the batch's entries and its own. ``td_model`` makes a model of
a layer, and ``compose`` runs named models in order and nests their parameters by those names;
``methods`` has several ways through the same parts, and ``parallel`` one part for several inputs.
Nothing is owned and nothing is written: parameters come in from outside, non-leaf tensors of an
outer graph included, and buffers come back.
"""

from .contract import Model as Model
from .contract import located as located
from .contract import require_key as require_key
from .contract import require_model as require_model
from .routes import compose as compose
from .routes import methods as methods
from .tensordicts import parallel as parallel
from .tensordicts import td_model as td_model
from .tensordicts import with_next as with_next
