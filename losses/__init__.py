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
nothing depends on time, any batch size will do, of at least one step: an empty td is refused. The
keys are TorchRL's. A number per step may have a trailing axis of one; each key is brought to the
batch size by itself.

    read from the td         shape        dtype  meaning
    -----------------------  -----------  -----  ---------------------------------------------------
    action                   [*B, T]      int    the action's index; or one-hot [*B, T, A] of any
                                                 dtype; or what dist_class's log_prob takes; or a td
                                                 of several heads' actions
    logits                   [*B, T, A]   float  log-probabilities of actions, up to a constant; or
    probs                    [*B, T, A]   float  probabilities of actions, up to a factor; or
    loc, scale               [*B, T, D]   float  of a distribution of real vectors; or
    actor_output             any          float  a tensor goes to dist_class as it is, a td as its
                                                 keywords; or
    params                   td           float  parameters of several heads, by name
    action_mask              [*B, T, A]   bool   actions that are allowed, for masked_categorical;
                                                 under next, those that Q-learning chooses among
    action_log_prob          [*B, T]      float  log mu(a_t|s_t) of the policy that drew the action;
                             [*B, T, D]          for each component; or a td of several heads'; or,
                                                 beside each head, an entry <head>_log_prob
    behavior                 td           float  that policy's own logits (loc, ...), and its
                                                 state_value, under these names
    teacher                  td           float  parameters of a policy to imitate, likewise
    state_value              [*B, T]      float  V(s_t)
    advantage                [*B, T]      float  A_t; add_advantage and its kin write it
    value_target             [*B, T]      float  what a critic should say; the estimators write it;
                             [*B, T, K]          with atoms or quantiles, of each
    value_target_probs       [*B, T, M]   float  weights of quantiles in value_target
    next.state_value         [*B, T]      float  V(s_{t+1}) of the state that really followed
    next.logits, ...         [*B, T, A]   float  the policy in that state, by any of its parameters
    next.reward              [*B, T]      float  r_t
    next.done                [*B, T]      bool   the episode ended with this step: cuts the trace
    next.terminated          [*B, T]      bool   nothing follows this step: cuts the bootstrap
    steps_to_next_obs        [*B, T]      int    n: next lies n steps ahead, its reward is the sum
                                                 of theirs; a keyword gamma is raised to n, an entry
                                                 (as TorchRL's MultiStep writes it) is gamma^n
    mask                     [*B, T]      bool   steps that count; all, if there is none
    collector.mask           [*B, T]      bool   the same, as TorchRL pads; with both, both count
    weight                   [*B, T]      float  weights of steps (importance, priority) in sums and
                                                 means; priority_weight, if there is none
    gamma, lmbda, eps, ...   [*B, T]      float  a hyper-parameter per step; wins over the keyword

    of state-action values
    action_value             [*B, T, A]   float  Q(s_t, .); [*B, T, N, A] of an ensemble
    next.action_value        [*B, T, A]   float  Q'(s_{t+1}, .), of a target network
    next.action_value_selector            float  Q(s_{t+1}, .), of the network that chooses
    action_value_target      [*B, T, A]   float  Q(s_t, .) that a policy learns from, and how much
    action_advantage         [*B, T, A]   float  better each action is than their mean;
                                                 add_action_advantage writes both
    state_action_value       [*B, T, N]   float  Q_i(s_t, a_t) of N critics; [*B, T] of one; under
                                                 next, Q'_i(s_{t+1}, a') of the target policy's a'
    state_action_value_actor [*B, T, N]   float  Q_i(s_t, pi(s_t)), the critics' parameters held
    state_action_value_target             float  Q'_i(s_t, a_t), of target networks
    action_log_prob_actor    [*B, T]      float  log pi of that sample; under next, of a'
    action_actor             [*B, T, D]   float  pi(s_t) of a deterministic policy
    action_gradient          [*B, T, D]   float  dQ/da at pi(s_t)
    action_target            [*B, T, D]   float  where it should go; add_action_target writes it
    state_value_logits       [*B, T, K]   float  of a value's atoms, under next too
    action_value_logits      [*B, T, A, K]       the same for each action
    action_value_quantiles   [*B, T, A, K]       quantiles for each action, under next too
    state_action_quantiles   [*B, T, N, K]       of N critics, under next too; ..._actor at pi(s_t)

    of sampled actions
    action_value_samples     [*B, T, S]   float  Q(s_t, a_j) of S samples; [*B, T, N, S] of critics
    action_log_prob_samples  [*B, T, S]   float  log pi(a_j|s_t)
    action_log_density_samples            float  log-density that a_j was drawn with
    action_samples           [*B, T, S]   int    the samples themselves
    policy_weight            [*B, T, S]   float  how much each counts; add_mpo_weight and
                                                 add_vmpo_weight ([*B, T]) write it
    importance_weight        [*B, T]      float  of V-MPO's steps
    what constraints name    [*B, T]      float  a KL that MPO bounds; [*B, T, D] of components

    of learned rules
    prediction               [*B, T, m]   float  logits of the agent's prediction y(s_t)
    pi_hat                   [*B, T]      float  a learned rule's target for the policy
    y_hat                    [*B, T, m]   float  a learned rule's target for y(s_t), probabilities
    action_prediction        [*B, T, A, m]       logits of z(s_t, a)
    auxiliary_logits         [*B, T, A, A]       the policy foreseen after each action
    policy_target_logits     [*B, T, A]   float  DiscoRL's target for the policy; likewise
    prediction_target_logits [*B, T, m]   float  for y(s_t), and
    action_prediction_target_logits       float  for z(s_t, a_t), [*B, T, m]
    target                   td           float  the target network's logits

    written by a loss
    loss_...                 [] or [*B, T]       to be minimized
    td_error                 [*B, T]             a priority, whatever the reduction
    others                   [] or [*B, T]       diagnostics, named in each docstring

A real hyper-parameter is a float or a tensor, as a keyword 0-d or of the td's batch size, or an
entry of the td, and gets its right gradient. A float is held to its range; what a tensor holds is
not looked at.

What is detached: diagnostics; and, only where a reducer has to make its targets itself, the values
that enter them. Of a mask that leaves out every step the sum is 0, and the mean NaN.

.. include:: README.md
"""

from .actor_critic import add_action_target as add_action_target
from .actor_critic import add_min_target as add_min_target
from .actor_critic import ddpg_actor_loss as ddpg_actor_loss
from .actor_critic import ddpg_critic_loss as ddpg_critic_loss
from .actor_critic import deterministic_policy_gradient_loss as deterministic_policy_gradient_loss
from .actor_critic import td3_actor_loss as td3_actor_loss
from .actor_critic import td3_critic_loss as td3_critic_loss
from .actor_critic import td3_target_action as td3_target_action
from .cql import cql_alpha_prime_loss as cql_alpha_prime_loss
from .cql import cql_loss as cql_loss
from .cql import cql_penalty as cql_penalty
from .cql import discrete_cql_loss as discrete_cql_loss
from .cql import discrete_cql_penalty as discrete_cql_penalty
from .densities import categorical_cross_entropy as categorical_cross_entropy
from .densities import categorical_kl as categorical_kl
from .densities import importance_ratio as importance_ratio
from .densities import independent_normal as independent_normal
from .densities import masked_categorical as masked_categorical
from .densities import tanh_normal as tanh_normal
from .disco import disco_agent_loss as disco_agent_loss
from .disco import disco_meta_loss as disco_meta_loss
from .disco import disco_regularizer_loss as disco_regularizer_loss
from .discrete_sac import add_expected_soft_target as add_expected_soft_target
from .discrete_sac import discrete_sac_actor_loss as discrete_sac_actor_loss
from .discrete_sac import discrete_sac_critic_loss as discrete_sac_critic_loss
from .discrete_sac import (
    discrete_sac_temperature_loss as discrete_sac_temperature_loss,
)
from .distances import absolute_error as absolute_error
from .distances import clip_gradient as clip_gradient
from .distances import expectile_error as expectile_error
from .distances import half_squared_error as half_squared_error
from .distances import huber as huber
from .distances import huber_error as huber_error
from .distances import squared_error as squared_error
from .distributional import add_categorical_target as add_categorical_target
from .distributional import categorical_projection as categorical_projection
from .distributional import categorical_q_loss as categorical_q_loss
from .distributional import categorical_td_loss as categorical_td_loss
from .distributions import distribution as distribution
from .distributions import joint as joint
from .distributions import kl_divergence as kl_divergence
from .drift import mirror_loss as mirror_loss
from .e_step import mpo_temperature_dual as mpo_temperature_dual
from .e_step import mpo_weights as mpo_weights
from .e_step import vmpo_temperature_dual as vmpo_temperature_dual
from .e_step import vmpo_weights as vmpo_weights
from .estimators import add_advantage as add_advantage
from .estimators import add_lambda_returns as add_lambda_returns
from .estimators import add_q_target as add_q_target
from .estimators import add_retrace as add_retrace
from .estimators import add_td_target as add_td_target
from .estimators import add_vtrace as add_vtrace
from .imitation import bc_loss as bc_loss
from .imitation import distillation_loss as distillation_loss
from .imitation import sampled_cross_entropy as sampled_cross_entropy
from .lagrange import LagrangePenalty as LagrangePenalty
from .lagrange import lagrange_dual as lagrange_dual
from .lagrange import lagrange_penalty as lagrange_penalty
from .meta import lpg_agent_loss as lpg_agent_loss
from .meta import lpg_meta_loss as lpg_meta_loss
from .meta import lpg_regularizer_loss as lpg_regularizer_loss
from .meta import lpg_value_loss as lpg_value_loss
from .meta import mgrl_outer_loss as mgrl_outer_loss
from .module import as_module as as_module
from .module import total as total
from .moments import ema_moments_init as ema_moments_init
from .moments import ema_moments_normalize as ema_moments_normalize
from .moments import ema_moments_unnormalize as ema_moments_unnormalize
from .moments import ema_moments_update as ema_moments_update
from .moments import return_scale as return_scale
from .moments import return_scale_init as return_scale_init
from .moments import return_scale_update as return_scale_update
from .mpo import add_mpo_weight as add_mpo_weight
from .mpo import add_vmpo_weight as add_vmpo_weight
from .mpo import mpo_dual_loss as mpo_dual_loss
from .mpo import mpo_loss as mpo_loss
from .mpo import vmpo_dual_loss as vmpo_dual_loss
from .mpo import vmpo_loss as vmpo_loss
from .off_policy import VTrace as VTrace
from .off_policy import off_policy_returns as off_policy_returns
from .off_policy import retrace as retrace
from .off_policy import retrace_continuous as retrace_continuous
from .off_policy import vtrace as vtrace
from .offline import add_iql_advantage as add_iql_advantage
from .offline import advantage_weight as advantage_weight
from .offline import awr_loss as awr_loss
from .offline import iql_critic_loss as iql_critic_loss
from .offline import iql_value_loss as iql_value_loss
from .offline import td3_bc_actor_loss as td3_bc_actor_loss
from .policy_gradient import a2c_loss as a2c_loss
from .policy_gradient import dice_loss as dice_loss
from .policy_gradient import entropy_loss as entropy_loss
from .policy_gradient import magic_box as magic_box
from .policy_gradient import policy_gradient_loss as policy_gradient_loss
from .policy_gradient import reinforce_loss as reinforce_loss
from .popart import popart_init as popart_init
from .popart import popart_normalize as popart_normalize
from .popart import popart_rescale as popart_rescale
from .popart import popart_unnormalize as popart_unnormalize
from .popart import popart_update as popart_update
from .ppo import discovered_policy_loss as discovered_policy_loss
from .ppo import kl_coeff_update as kl_coeff_update
from .ppo import ppo_clip_loss as ppo_clip_loss
from .ppo import ppo_kl_penalty_loss as ppo_kl_penalty_loss
from .ppo import ppo_loss as ppo_loss
from .q_learning import double_q_learning_error as double_q_learning_error
from .q_learning import double_q_learning_loss as double_q_learning_loss
from .q_learning import expected_sarsa_error as expected_sarsa_error
from .q_learning import persistent_q_error as persistent_q_error
from .q_learning import q_learning_error as q_learning_error
from .q_learning import q_learning_loss as q_learning_loss
from .q_learning import sarsa_error as sarsa_error
from .quantile import add_quantile_q_target as add_quantile_q_target
from .quantile import quantile_huber as quantile_huber
from .quantile import quantile_q_loss as quantile_q_loss
from .regret import add_action_advantage as add_action_advantage
from .regret import qpg_loss as qpg_loss
from .regret import rm_loss as rm_loss
from .regret import rpg_loss as rpg_loss
from .returns import discounted_returns as discounted_returns
from .returns import gae as gae
from .returns import lambda_returns as lambda_returns
from .returns import n_step_returns as n_step_returns
from .returns import reverse_linear as reverse_linear
from .returns import td_targets as td_targets
from .scaling import TxPair as TxPair
from .scaling import compose_tx as compose_tx
from .scaling import discount_pair as discount_pair
from .scaling import hyperbolic_sin_pair as hyperbolic_sin_pair
from .scaling import identity_pair as identity_pair
from .scaling import muzero_pair as muzero_pair
from .scaling import signed_hyperbolic as signed_hyperbolic
from .scaling import signed_hyperbolic_pair as signed_hyperbolic_pair
from .scaling import signed_logp1_pair as signed_logp1_pair
from .scaling import signed_parabolic as signed_parabolic
from .scaling import symexp as symexp
from .scaling import symlog as symlog
from .scaling import two_hot as two_hot
from .scaling import two_hot_mean as two_hot_mean
from .scaling import two_hot_pair as two_hot_pair
from .scaling import unbiased_transform_pair as unbiased_transform_pair
from .soft_actor_critic import add_soft_target as add_soft_target
from .soft_actor_critic import crossq_critic_loss as crossq_critic_loss
from .soft_actor_critic import redq_actor_loss as redq_actor_loss
from .soft_actor_critic import redq_critic_loss as redq_critic_loss
from .soft_actor_critic import sac_actor_loss as sac_actor_loss
from .soft_actor_critic import sac_critic_loss as sac_critic_loss
from .soft_actor_critic import sac_value_loss as sac_value_loss
from .temperature import bounded_log_alpha as bounded_log_alpha
from .temperature import sac_temperature_loss as sac_temperature_loss
from .truncated_quantile import add_truncated_quantile_target as add_truncated_quantile_target
from .truncated_quantile import tqc_actor_loss as tqc_actor_loss
from .truncated_quantile import tqc_critic_loss as tqc_critic_loss
from .value import clipped_error as clipped_error
from .value import clipped_value_loss as clipped_value_loss
from .value import expectile_loss as expectile_loss
from .value import explained_variance as explained_variance
from .value import td_error as td_error
from .value import value_loss as value_loss
