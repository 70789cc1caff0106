"""Losses that own nothing: pure functions of tensors and of one output TensorDict.

* A *per-step function* is one equation of a paper over tensors ``[T, *batch]``, time first:
  ``gae``.
* An *estimator* adds what is to be learned from to a new td: ``add_advantage``.
* A *reducer* turns one td into scalars: ``a2c_loss(td, dist_class=Categorical, **hyper)``. Every
  key that starts with ``loss_`` is to be minimized and their sum, ``total``, is the objective; the
  other keys are diagnostics, detached. With ``reduction`` "mean" or "sum" the batch size is ``[]``;
  with "none" it is the td's, and the per-step losses are added to its entries.

No input is changed, no random number is drawn, and everything is right under ``torch.func`` and
``torch.compile``. Results are locked, except inside a compiler.

A td has batch size ``[*B, T]``: time is its last batch dimension, or the one named "time". Where
nothing depends on time, any batch size will do. The keys are TorchRL's. A number per step may have
a trailing axis of one; each key is brought to the batch size by itself.

    key                      shape        dtype  meaning
    -----------------------  -----------  -----  ---------------------------------------------------
    action                   [*B, T]      int    the action's index; or one-hot [*B, T, A] of any
                                                 dtype; or what dist_class's log_prob takes
    logits                   [*B, T, A]   float  log-probabilities of actions, up to a constant; or
    probs                    [*B, T, A]   float  probabilities of actions, up to a factor; or
    loc, scale               [*B, T, D]   float  of a distribution of real vectors; or
    actor_output             any          float  a tensor goes to dist_class as it is, a td as its
                                                 keywords
    state_value              [*B, T]      float  V(s_t)
    advantage                [*B, T]      float  A_t; add_advantage writes it
    value_target             [*B, T]      float  what V(s_t) should be; add_advantage writes it
    next.state_value         [*B, T]      float  V(s_{t+1}) of the state that really followed
    next.reward              [*B, T]      float  r_t
    next.done                [*B, T]      bool   the episode ended with this step: cuts the trace
    next.terminated          [*B, T]      bool   nothing follows this step: cuts the bootstrap
    prediction               [*B, T, m]   float  logits of the agent's prediction y(s_t)
    pi_hat                   [*B, T]      float  a learned rule's target for the policy
    y_hat                    [*B, T, m]   float  a learned rule's target for y(s_t), probabilities
    mask                     [*B, T]      bool   steps that count; all, if there is none
    weight                   [*B, T]      float  weights of steps in sums and means
    gamma, lmbda, eps, and   [*B, T]      float  a hyper-parameter per step; wins over the keyword
    those in _coeff

A real hyper-parameter is a float or a tensor, as a keyword 0-d or of the td's batch size, or an
entry of the td, and gets its right gradient. A float is held to its range; what a tensor holds is
not looked at.

What is detached: diagnostics; and, only where a reducer has to make its targets itself, the values
that enter them. The mean over a mask that leaves out every step is NaN.
"""

from .distributions import distribution as distribution
from .distributions import independent_normal as independent_normal
from .estimators import add_advantage as add_advantage
from .meta import lpg_agent_loss as lpg_agent_loss
from .meta import lpg_meta_loss as lpg_meta_loss
from .meta import lpg_regularizer_loss as lpg_regularizer_loss
from .module import as_module as as_module
from .module import total as total
from .policy_gradient import a2c_loss as a2c_loss
from .policy_gradient import policy_gradient_loss as policy_gradient_loss
from .returns import discounted_returns as discounted_returns
from .returns import gae as gae
from .returns import lambda_returns as lambda_returns
from .returns import reverse_linear as reverse_linear
from .value import squared_error as squared_error
