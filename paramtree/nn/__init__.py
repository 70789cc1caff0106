"""Layers: pairs of pure functions, ``init(key)`` and ``apply(params, buffers, x)``.

A layer takes a tensor or a tuple of tensors and gives a tensor or a tuple; ``paramtree.td_model``
makes a model of TensorDicts of it. Names and layouts of parameters are those of torch.nn.
"""

from .compose import mlp as mlp
from .compose import sequential as sequential
from .initializers import Initializer as Initializer
from .initializers import constant as constant
from .initializers import normal as normal
from .initializers import orthogonal as orthogonal
from .initializers import truncated_normal as truncated_normal
from .initializers import uniform as uniform
from .initializers import variance_scaling as variance_scaling
from .initializers import zeros as zeros
from .linear import embedding as embedding
from .linear import linear as linear
from .linear import table as table
from .recurrent import gru as gru
from .recurrent import lstm as lstm
