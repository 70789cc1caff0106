"""Algorithms that learn to learn, on one ``UpdateRule``, hand-written or learned."""

from .inner_loop import inner_loop as inner_loop
from .inner_loop import train_agent as train_agent
from .lifetime import Habitat as Habitat
from .lifetime import birth as birth
from .lifetime import births as births
from .lifetime import older as older
from .lifetime import renew as renew
from .lifetime import reward_curve as reward_curve
from .lpg import lpg_network as lpg_network
from .lpg import lpg_rule as lpg_rule
from .lpg_training import Population as Population
from .lpg_training import Training as Training
from .lpg_training import lpg_training as lpg_training
from .tabular import a2c_habitat as a2c_habitat
from .tabular import lpg_population as lpg_population
from .tabular import tabular_model as tabular_model
from .update_rule import UpdateRule as UpdateRule
from .update_rule import a2c_rule as a2c_rule
from .update_rule import update_agent as update_agent
