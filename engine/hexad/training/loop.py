"""One training loop for every family. A run that is killed and resumed ends with the bits of one that is not.

That needs no random-number state on disk: step i draws everything from generators seeded by (recipe.seed, i).
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..checkpoint import tensors_of
from ..errors import CheckpointError, HexadError
from ..files import atomic_write

SAVE_EVERY = 15.0  # seconds


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. ``ema`` is the decay of the weights' running mean, which ships; 0: no mean."""

    steps: int
    batch: int
    lr: float
    seed: int = 0
    warmup: int = 100
    weight_decay: float = 0.0
    ema: float = 0.0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)


class Trainer(Protocol):
    """What ``run`` drives. ``state`` is a flat dict of tensors that ``load`` restores exactly."""

    def step(self, i: int) -> dict[str, float]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...
    def result(self) -> dict[str, Tensor]: ...


def step_seed(seed: int, i: int) -> int:
    """A 32-bit seed of (seed, i). Mixed, as torch's CPU generator looks at the low 32 bits of a seed only."""
    z = (seed * 0x9E3779B97F4A7C15 + i * 0xD1B54A32D192ED03 + 0x8CB92BA72F3D8DD7) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 32


def generator(seed: int, i: int) -> torch.Generator:
    """The generator that all randomness of step i comes from."""
    return torch.Generator().manual_seed(step_seed(seed, i))


def learning_rate(recipe: Recipe, i: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm = min(1.0, (i + 1) / max(1, recipe.warmup))
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * i / recipe.steps))


class GradientTrainer:
    """AdamW, warm-up, cosine decay, gradient clipping and EMA for a model that minimises one loss.

    ``loss(i, generator)`` returns the scalar loss of step i, or (loss, figures to show beside it).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[int, torch.Generator], Tensor | tuple[Tensor, dict[str, float]]],
        recipe: Recipe,
    ) -> None:
        self.model, self.loss, self.recipe = model, loss, recipe
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((matrices, recipe.weight_decay), (vectors, 0.0))
            if group
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()} if recipe.ema else {}

    def step(self, i: int) -> dict[str, float]:
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, i)
        outcome = self.loss(i, generator(self.recipe.seed, i))
        loss, figures = outcome if isinstance(outcome, tuple) else (outcome, {})
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.optimiser.step()
        # A young mean follows quickly, so that it does not remember the initialisation.
        decay = min(self.recipe.ema, (1 + i) / (10 + i))
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.lerp_(self.parameters[name], 1 - decay)
        return {"loss": float(loss.detach()), **figures}

    def state(self) -> dict[str, Tensor]:
        state = {f"model.{name}": tensor.detach() for name, tensor in tensors_of(self.model).items()}
        state |= {f"mean.{name}": tensor for name, tensor in self.mean.items()}
        for name, parameter in self.parameters.items():
            for slot, value in self.optimiser.state.get(parameter, {}).items():
                state[f"optimiser.{slot}.{name}"] = value
        return {name: tensor.contiguous().clone() for name, tensor in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors_of(self.model).items():
                tensor.copy_(state[f"model.{name}"])
        for name in self.mean:
            self.mean[name] = state[f"mean.{name}"].clone()
        for name, parameter in self.parameters.items():
            slots = ("step", "exp_avg", "exp_avg_sq")
            if f"optimiser.step.{name}" in state:
                self.optimiser.state[parameter] = {s: state[f"optimiser.{s}.{name}"].clone() for s in slots}

    def result(self) -> dict[str, Tensor]:
        weights = {name: tensor.detach().clone() for name, tensor in tensors_of(self.model).items()}
        return weights | {name: mean.clone() for name, mean in self.mean.items() if name in weights}


def run(
    trainer: Trainer,
    recipe: Recipe,
    *,
    resume_path: Path | None = None,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
    keep_resume: bool = False,
) -> dict[str, Tensor]:
    """Train to the end of ``recipe`` and return the weights to ship.

    The state goes to ``resume_path`` every 15 s; if that exists and is of this recipe, the run continues from
    it. Ctrl-C finishes the step, saves, and raises KeyboardInterrupt. The file is deleted at the end unless
    kept until the result is safe. ``progress(steps_done, figures)`` follows each step, and a resume.
    """
    import hexad_kernels

    start = 0
    if resume_path is not None and resume_path.exists():
        start = _resume(trainer, recipe, resume_path)
        if progress is not None:
            progress(start, {})
    saved = time.monotonic()
    with _polite_interrupt() as interrupted, _deterministic(), _one_thread(), hexad_kernels.backend("reference"):
        for i in range(start, recipe.steps):
            torch.manual_seed(step_seed(recipe.seed, i))  # what draws outside the step's generator, such as dropout
            figures = trainer.step(i)
            if not all(math.isfinite(value) for value in figures.values()):
                raise HexadError(f"training diverged at step {i}: {figures}")
            if progress is not None:
                progress(i + 1, figures)
            due = interrupted.is_set() or time.monotonic() - saved >= SAVE_EVERY or i + 1 == recipe.steps
            if resume_path is not None and due:
                _save(trainer, recipe, resume_path, i + 1)
                saved = time.monotonic()
            if interrupted.is_set():
                raise KeyboardInterrupt(f"interrupted after step {i + 1} of {recipe.steps}")
    if resume_path is not None and not keep_resume:
        resume_path.unlink(missing_ok=True)
    return trainer.result()


def _save(trainer: Trainer, recipe: Recipe, path: Path, done: int) -> None:
    meta = {"done": str(done), "recipe": json.dumps(asdict(recipe), sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write({path: safetensors.torch.save(trainer.state(), meta)})


def _resume(trainer: Trainer, recipe: Recipe, path: Path) -> int:
    try:
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            meta = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if meta.get("recipe") != json.dumps(asdict(recipe), sort_keys=True):
            raise CheckpointError(f"{path}: left by a run with another recipe; finish that one or start afresh")
        trainer.load(state)
        return int(meta["done"])
    except (safetensors.SafetensorError, KeyError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be resumed from ({error}); start afresh") from error


@contextmanager
def _deterministic() -> Iterator[None]:
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a debugging aid that costs a pass over every output
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        settings.fill_uninitialized_memory = fill


@contextmanager
def _one_thread() -> Iterator[None]:
    """The models are small enough for one core, and so a checkpoint's bits do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _polite_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no step is cut in half; the second interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
