"""Meta-gradient reinforcement learning: hyper-parameters that are learned on the way."""

from .hyper import Constraint as Constraint
from .hyper import Hyper as Hyper
from .hyper import hyper_network as hyper_network
from .hyper import hyper_numbers as hyper_numbers
from .hyper import hyper_schedule as hyper_schedule
from .hyper import to_eta as to_eta
from .hyper import to_hyper as to_hyper
from .training import mgrl_training as mgrl_training
