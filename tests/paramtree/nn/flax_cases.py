"""The numbers in tests/data/flax_layers.npz and others of its kind, case by case."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[2] / "data"


def load(filename):
    """Cases by function: lists of tensors by key, as tests/fixtures/recorder.py has them."""
    cases = defaultdict(lambda: defaultdict(dict))
    with np.load(DATA / filename) as file:
        layout = json.loads(file["layout"].tobytes())
        for name, entries in layout.items():
            values, start = file[name], 0
            for key, dtype, shape in entries:
                case, key = key.split("/", 1)
                end = start + int(np.prod(shape))
                array = values[start:end].reshape(shape).astype(dtype)
                cases[name][int(case)][key], start = torch.tensor(array), end
    return {name: [by_number[i] for i in sorted(by_number)] for name, by_number in cases.items()}


CASES = load("flax_layers.npz")
