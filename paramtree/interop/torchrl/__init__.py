"""TorchRL's loss modules, with their constructors and keys, over the pure functions of ``losses``.

Each holds networks, prepares what its loss reads (it runs them, and estimates targets if the td has
none), and calls one function, or two. Hyper-parameters, ``gamma`` and ``lmbda`` among them, are
read at each call and may be replaced at any time, by assignment, ``register_buffer`` or
``register_parameter``; a tensor keeps its graph, so any of them can be learned: after
``loss_module.register_buffer("gamma", meta_param)`` its losses are functions of ``meta_param``, as
the project's README shows.

An entry of the td that has the name of a hyper-parameter, one number per step, wins over the
module's own (the ``gamma`` that TorchRL's ``MultiStep`` writes does not: it is a power already).

Unlike TorchRL's: nothing is written into the td that is given, and priorities are an entry of the
result, ``td_error``, one number per step; targets that are made inside are functions of the
hyper-parameters, with a full stop on the networks' outputs; diagnostics are means over the steps
that count; a ``priority_weight`` weighs the steps of every loss; with ``reduction="none"`` losses
and diagnostics have the td's batch size; the networks keep their parameters (``functional`` is
taken, and without effect). As in TorchRL, what has to be sampled is drawn from torch's own
generator. Options that have no counterpart raise.
"""

from .module import LossOutput as LossOutput
from .policy import A2CLoss as A2CLoss
from .policy import ReinforceLoss as ReinforceLoss
from .ppo import ClipPPOLoss as ClipPPOLoss
from .ppo import KLPENPPOLoss as KLPENPPOLoss
from .ppo import PPOLoss as PPOLoss
from .soft import SACLoss as SACLoss
from .value import DDPGLoss as DDPGLoss
from .value import DQNLoss as DQNLoss
from .value import TD3Loss as TD3Loss
