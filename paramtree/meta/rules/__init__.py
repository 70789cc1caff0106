"""Update rules that are written by hand, and a learned one of their kind."""

from .policy_gradient import a2c_rule as a2c_rule
from .policy_gradient import reinforce_rule as reinforce_rule
from .policy_gradient import vtrace_rule as vtrace_rule
from .proximal import dpo_rule as dpo_rule
from .proximal import lpo_network as lpo_network
from .proximal import lpo_rule as lpo_rule
from .proximal import ppo_rule as ppo_rule
from .values import epsilon_greedy_policy as epsilon_greedy_policy
from .values import q_lambda_rule as q_lambda_rule
from .values import sarsa_lambda_rule as sarsa_lambda_rule
from .values import softmax_policy as softmax_policy
from .values import td_lambda_rule as td_lambda_rule
