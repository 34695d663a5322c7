import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hexad.errors import CheckpointError, HexadError
from hexad.tasks import classifier
from hexad.training import loop
from hexad.training.loop import GradientTrainer, Recipe, run

# Batch norm, dropout, an EMA and augmentation: every kind of state and randomness that training has.
STEPS = 30


def train(resume, result, pause=0.0):
    recipe = replace(classifier.RECIPE, steps=STEPS, batch=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        trainer = classifier.trainer(classifier.build(), recipe)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "SAVE_EVERY", 0.0)
            weights = loop.run(trainer, recipe, resume_path=Path(resume), progress=lambda *_: time.sleep(pause))
    finally:
        torch.set_num_threads(threads)
    safetensors.torch.save_file(weights, result)


def steps_done(path):
    try:
        with safetensors.safe_open(path, "pt") as file:
            return int(file.metadata()["done"])
    except (OSError, FileNotFoundError, safetensors.SafetensorError):
        return 0


def start(folder):
    code = "import sys; from tests.test_training_loop import train; train(*sys.argv[1:], 0.5)"
    files = [str(folder / "resume.safetensors"), str(folder / "result.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code, *files], env=environment, stderr=subprocess.PIPE)


def wait_for_step(path, step, process):
    while steps_done(path) < step:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder / "resume.safetensors", folder / "result.safetensors")
    assert not (folder / "resume.safetensors").exists()
    return safetensors.torch.load_file(folder / "result.safetensors")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, uninterrupted, how):
    resume = tmp_path / "resume.safetensors"
    process = start(tmp_path)
    wait_for_step(resume, 4, process)
    process.send_signal(how)
    assert process.wait(60) != 0
    assert 4 <= steps_done(resume) < STEPS
    assert not (tmp_path / "result.safetensors").exists()
    train(resume, tmp_path / "result.safetensors")
    result = safetensors.torch.load_file(tmp_path / "result.safetensors")
    assert result.keys() == uninterrupted.keys()
    for name, tensor in uninterrupted.items():
        assert torch.equal(result[name], tensor), name
    assert not resume.exists()


def linear(recipe, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(5, 1)

    def loss(i, generator):
        x = torch.randn(recipe.batch, 5, generator=generator)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return GradientTrainer(model, loss, recipe)


def test_it_learns_what_there_is_to_learn():
    recipe = Recipe(steps=400, batch=32, lr=0.05, warmup=10)
    weights = run(linear(recipe), recipe)
    assert (weights["weight"] - 1).abs().max() < 1e-3


def test_ema_is_the_running_mean_of_the_weights():
    recipe = Recipe(steps=8, batch=4, lr=0.1, warmup=1, ema=0.9)
    trainer, mean = linear(recipe), None
    for i in range(recipe.steps):
        mean = trainer.model.weight.detach().clone() if i == 0 else mean
        trainer.step(i)
        decay = min(0.9, (1 + i) / (10 + i))
        mean = decay * mean + (1 - decay) * trainer.model.weight.detach()
    assert torch.allclose(trainer.result()["weight"], mean, atol=1e-6)
    assert not torch.equal(trainer.result()["weight"], trainer.model.weight)


def test_the_rate_warms_up_and_decays():
    recipe = Recipe(steps=100, batch=1, lr=2.0, warmup=10)
    rates = [loop.learning_rate(recipe, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[9] and rates[-1] < 1e-3
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_neighbouring_steps_and_seeds_draw_differently():
    seeds = {loop.step_seed(seed, i) for seed in range(20) for i in range(1000)}
    assert len(seeds) == 20_000 and max(seeds) < 2**32
    # torch's CPU generator ignores the high half of a seed: the mixing must not rely on it.
    high = torch.Generator().manual_seed(1 << 32), torch.Generator().manual_seed(2 << 32)
    assert torch.equal(torch.rand(4, generator=high[0]), torch.rand(4, generator=high[1]))
    a, b = loop.generator(0, 1), loop.generator(1, 0)
    assert not torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))


def test_resume_refuses_another_recipe_and_a_damaged_file(tmp_path):
    recipe = Recipe(steps=3, batch=4, lr=0.1)
    path = tmp_path / "r.safetensors"
    run(linear(recipe), recipe, resume_path=path, keep_resume=True)
    other = replace(recipe, lr=0.2)
    with pytest.raises(CheckpointError, match="another recipe"):
        run(linear(other), other, resume_path=path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        run(linear(recipe), recipe, resume_path=path)


def test_a_finished_run_that_was_kept_is_not_trained_again(tmp_path):
    recipe = Recipe(steps=3, batch=4, lr=0.1)
    path = tmp_path / "r.safetensors"
    first = run(linear(recipe), recipe, resume_path=path, keep_resume=True)
    second = run(linear(recipe, seed=1), recipe, resume_path=path)
    assert torch.equal(first["weight"], second["weight"]) and not path.exists()


def test_divergence_is_an_error_and_leaves_no_broken_state(tmp_path):
    recipe = Recipe(steps=3, batch=4, lr=0.1)
    trainer = linear(recipe)
    trainer.loss = lambda i, generator: trainer.model.weight.sum() * float("nan")
    with pytest.raises(HexadError, match="diverged at step 0"):
        run(trainer, recipe, resume_path=tmp_path / "r.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_callers_settings_come_back():
    deterministic, handler = torch.are_deterministic_algorithms_enabled(), signal.getsignal(signal.SIGINT)
    recipe = replace(classifier.RECIPE, steps=2, batch=4)
    trainer = classifier.trainer(classifier.build(), recipe)
    state = torch.get_rng_state()
    run(trainer, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert signal.getsignal(signal.SIGINT) is handler
