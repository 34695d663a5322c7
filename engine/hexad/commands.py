"""The commands, one function each. They check, call, and print; the work is elsewhere."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from . import checks, options, registry
from .errors import HexadError, InputError, Interrupted
from .evaluation import Gate
from .report import gate_table, step_bar, training_bar

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Six families of generative models on one kernel engine.",
)
console = Console()
Model = Annotated[str, typer.Argument(metavar="MODEL", help="one of: " + " ".join(registry.MODELS))]
Backend = Annotated[str | None, typer.Option(help="force one backend of hexad_kernels, such as reference or cpu")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="weights to use instead of the shipped ones: a file or its folder")
]


@app.command()
def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="one of: " + " ".join(registry.MODELS) + " classifier")],
    out: Annotated[Path, typer.Option(help="folder of the checkpoint and its manifest")] = Path("out/checkpoints"),
    steps: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="do not continue an interrupted run")] = False,
) -> None:
    """Train a model from its seeded recipe, judge it on held-out data, write checkpoint and manifest."""
    from .training.job import train as work

    registry.entry(model, instruments=True)
    options.kernels()
    if steps is not None:
        checks.integer("steps", steps, 1, 10_000_000)
    options.output_directory(out)
    try:
        with training_bar(model) as progress:
            path, gates = work(model, out, steps=steps, fresh=fresh, progress=progress)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"{str(stop) or 'interrupted'}; the same command continues") from stop
    console.print(gate_table({model: gates}))
    console.print(f"wrote {escape(str(path))} and its manifest", highlight=False, soft_wrap=True)


@app.command()
def generate(
    model: Model,
    class_: Annotated[int | None, typer.Option("--class", help="digit to draw; default: all in turn")] = None,
    prompt: Annotated[str | None, typer.Option(help="text to continue")] = None,
    length: Annotated[int | None, typer.Option(help="tokens to write")] = None,
    steps: Annotated[int | None, typer.Option(help="sampling steps")] = None,
    guidance: Annotated[float | None, typer.Option(help="strength of classifier-free guidance")] = None,
    sampler: Annotated[str | None, typer.Option(help="way of sampling")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest")] = None,
    top_k: Annotated[int | None, typer.Option(help="draw among the k likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw among the likeliest tokens of this mass")] = None,
    n: Annotated[int | None, typer.Option(help="how many samples; default 64 images, or 1 text")] = None,
    seed: Annotated[int, typer.Option(help="sample i depends on seed + i alone")] = 0,
    out: Annotated[Path | None, typer.Option(help="file to write; default out/MODEL.png, or stdout for text")] = None,
    scale: Annotated[int, typer.Option(help="width of a pixel in the PNG; 1 for the raw 8x8 image")] = 8,
    backend: Backend = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Generate images (a grid, as PNG) or text."""
    entry = registry.entry(model)
    images = entry.data == "digits"
    count = checks.integer("n", (64 if images else 1) if n is None else n, 1, options.SAMPLES)
    checks.integer("seed", seed, 0, checks.LAST_SEED)
    checks.integer("--scale", scale, 1, 64)
    if images or out is not None:
        out = options.output_file(out or Path(f"out/{model}.png"), suffix=".png" if images else ".txt")
    task = entry.load_task()
    given = {"class_": class_, "prompt": prompt, "length": length, "steps": steps, "guidance": guidance}
    given |= {"sampler": sampler, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen = options.generation(model, task, given)
    with options.user_errors(backend):
        network = registry.load(model, checkpoint)
        with step_bar(f"generating with {model}") as progress:
            samples = task.generate(network, n=count, seed=seed, progress=progress, **chosen)
    _deliver(samples, out, scale)


def _deliver(samples: Any, out: Path | None, scale: int) -> None:
    from .files import atomic_write
    from .images import encode_png, grid

    if isinstance(samples, list):
        text = "\n\n".join(samples) + "\n"
        if out is None:
            typer.echo(text, nl=False)
            return
        content = text.encode()
    else:
        assert out is not None
        content = encode_png(grid(samples, scale=scale))
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write({out: content})
    console.print(f"wrote {escape(str(out))}", highlight=False, soft_wrap=True)


@app.command()
def fill(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="a sentence with [MASK] in the place of each blank")],
    top: Annotated[int, typer.Option(help="how many candidates for the first blank")] = 5,
    backend: Backend = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Fill the blanks of a sentence with BERT: the likeliest words for the first one, and their probabilities."""
    if "[MASK]" not in text:
        raise InputError("TEXT", repr(text), "a sentence with at least one [MASK]")
    with options.user_errors(backend):
        network = registry.load("bert", checkpoint)
        from .models.bert import BERT
        from .sampling import infill

        candidates = infill.fill(checks.model_of(network, BERT), text, top)
    width = max(len(word) for _, word, _ in candidates)
    for filled, word, probability in candidates:
        typer.echo(f"{probability:7.2%}  {word:<{width}}  {filled}")


@app.command()
def score(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="an 8x8 grey PNG")],
    backend: Backend = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Score an image: bits per dimension under a model with a likelihood (or its bound)."""
    from .images import read_digit

    entry = registry.entry(model)
    levels = read_digit(image)
    task = entry.load_task()
    if not hasattr(task, "score"):
        raise InputError("MODEL", repr(model), "a model with a likelihood: " + " ".join(registry.scorers()))
    with options.user_errors(backend):
        bits = float(task.score(registry.load(model, checkpoint), levels)[0])
    kind = "at most, by the evidence lower bound" if entry.family == "VAE" else "log-likelihood"
    console.print(f"{model}: {bits:.4f} bits/dim ({kind}; lower is likelier)", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="default: all, and the classifier")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    checkpoint: Checkpoint = None,
) -> None:
    """Measure every gate on held-out data; exit code 1 if one fails."""
    names = models or ["classifier", *registry.MODELS]
    for name in names:
        registry.entry(name, instruments=True)
    results: dict[str, list[Gate] | str] = {}
    with step_bar("evaluating") as progress:
        for done, name in enumerate(names):
            progress(done, len(names))
            results[name] = _gates(name, checkpoint, alone=len(names) == 1)
    if as_json:
        plain = {k: {"error": v} if isinstance(v, str) else [g.to_json() for g in v] for k, v in results.items()}
        typer.echo(json.dumps(plain, indent=2))
    else:
        console.print(gate_table(results))
    if any(isinstance(found, str) or not all(gate.passed for gate in found) for found in results.values()):
        raise typer.Exit(1)


def _gates(name: str, checkpoint: Path | None, *, alone: bool) -> list[Gate] | str:
    try:
        return registry.entry(name, instruments=True).load_task().evaluate(registry.load(name, checkpoint))
    except HexadError as error:
        if alone:
            raise
        return str(error)


@app.command()
def doctor() -> None:
    """What this machine has: instruction sets, backends, versions; which backend serves each op, and why."""
    from .doctor import print_report

    print_report(console)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of the page, pictures, texts and demo.json")] = Path("out/demo"),
) -> None:
    """Generate with every family, check the kernels against plain PyTorch, and write a page about it."""
    from .demo import run

    options.output_directory(out)
    if not run(out, console):
        raise typer.Exit(1)
