"""What every model's task shares: its options, and what it says to bad arguments."""

import inspect
import math

import numpy as np
import pytest
import torch

from hexad import checks, registry
from hexad.cli import OPTION_OF
from hexad.errors import InputError

BAD_OPTIONS = {
    "class_": (10, -1, 1.5),
    "guidance": (math.nan, math.inf, -1.0),
    "length": (0, 2.5),
    "prompt": ("", " ", None, "[MASK] \udcff", "[MASK] the " * 500),
    "sampler": ("spaced", 3),
    "steps": (0, 2.5),
    "temperature": (-1.0, math.nan, math.inf, "hot"),
    "top_k": (-1, 0.5),
    "top_p": (0.0, 1.5, math.nan),
}


@pytest.fixture(params=registry.MODELS)
def name(request):
    return request.param


def test_options_are_the_arguments_of_generate_and_of_the_command_line(name):
    task = registry.MODELS[name].load_task()
    arguments = inspect.signature(task.generate).parameters.keys()
    assert arguments - {"model", "n", "seed", "progress"} == task.OPTIONS
    assert OPTION_OF.keys() >= task.OPTIONS


def test_bad_arguments_are_named(name):
    task, model = registry.MODELS[name].load_task(), registry.load(name)
    for argument, value in (("n", 0), ("n", -1), ("n", 1.5), ("seed", -1), ("seed", 0.5), ("seed", 2**63)):
        with pytest.raises(InputError, match=f"{argument}: got "):
            task.generate(model, **({"n": 1, "seed": 0} | {argument: value}))
    with pytest.raises(InputError, match="model: got Linear, wants a "):
        task.generate(torch.nn.Linear(1, 1), n=1, seed=0)
    for option in task.OPTIONS:
        for value in BAD_OPTIONS[option]:
            with pytest.raises(InputError, match=f"{option}: got "):
                task.generate(model, n=1, seed=0, **{option: value})


@pytest.mark.parametrize("name", registry.scorers())
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 9, 8, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(0, 8, 8, dtype=torch.uint8),
        torch.full((2, 8, 8), 17, dtype=torch.uint8),
        torch.zeros(2, 8, 8),
        None,
    ],
)
def test_what_is_no_digit_is_not_scored(name, images):
    with pytest.raises(InputError, match=r"images: got .*, wants uint8 levels \(B, 8, 8\) of 0 to 16"):
        registry.MODELS[name].load_task().score(registry.load(name), images)


def test_integers_of_any_kind():
    assert checks.integer("n", np.int64(3), 1) == 3
    assert checks.integer("n", torch.tensor(3), 1, 3) == 3
    with pytest.raises(InputError, match="n: got 4, wants 1 to 3"):
        checks.integer("n", 4, 1, 3)
