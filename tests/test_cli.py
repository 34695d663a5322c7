import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import hexad_kernels
from hexad import checkpoint, cli, demo, registry
from hexad.models.classifier import Classifier
from hexad.sampling import infill


@pytest.fixture
def hexad(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


BAD = [
    ("generate nope", "MODEL: got 'nope', wants one of gan vae dit pixelcnn gpt bert realnvp glow"),
    ("train nope", "MODEL: got 'nope'"),
    ("score nope x.png", "MODEL: got 'nope'"),
    ("evaluate classifier nope", "MODEL: got 'nope'"),
    ("generate classifier", "MODEL: got 'classifier'"),
    ("generate", "Missing argument"),
    ("nonsense", "nonsense"),
    ("generate gan --bogus", "--bogus"),
    ("generate gan --n seven", "--n: got 'seven'"),
    ("generate gan --backend nope", "--backend: got 'nope', wants one of"),
    ("generate gan --class 11", "--class: got 11, wants 0 to 9"),
    ("generate gan --class -1", "--class: got -1, wants 0 to 9"),
    ("generate gan --n 0", "--n: got 0, wants 1 to"),
    ("generate gan --n 1000000000", "--n: got 1000000000, wants 1 to"),
    ("generate gan --seed -1", "--seed: got -1"),
    ("generate gan --scale 0", "--scale: got 0"),
    ("generate dit --steps -5", "--steps: got -5"),
    ("generate dit --steps 0", "--steps: got 0"),
    ("generate dit --guidance nan", "--guidance: got nan"),
    ("generate dit --sampler magic", "--sampler: got 'magic'"),
    ("train gan --steps -3", "--steps: got -3"),
    ("generate vae --class 3", "--class: got 3, wants a model that has it"),
    ("generate gan --prompt hello", "--prompt: got 'hello', wants a model that has it; gan understands --class"),
    ("generate realnvp --steps 5", "--steps: got 5, wants a model that has it"),
    ("generate gpt --prompt ", "--prompt: got ''"),
    ("generate gpt --top-p 0", "--top-p: got 0.0"),
    ("generate gan --out x.jpg", "--out: got x.jpg, wants a .png file"),
    ("generate gan --out .", "--out: got ."),
    ("generate gan --out /proc/nowhere/x.png", "--out: got /proc/nowhere"),
    ("train gan --out /proc/nowhere", "--out: got /proc/nowhere"),
    ("demo --out /proc/nowhere", "--out: got /proc/nowhere"),
    ("generate gan --checkpoint missing", "cannot be read (No such file or directory)"),
    ("generate pixelcnn --temperature -1", "--temperature: got -1.0, wants a finite number, 0 or more"),
    ("generate dit --guidance -1", "--guidance: got -1.0, wants a finite number, 0 or more"),
    ("generate dit --steps 1001", "--steps: got 1001, wants 1 to 1000"),
    ("generate dit --temperature 1", "--temperature: got 1.0, wants a model that has it"),
    ("generate bert --top-k 3", "--top-k: got 3, wants a model that has it; bert understands --prompt --steps"),
    ("generate bert --length 3", "--length: got 3, wants a model that has it"),
    ("generate gpt --prompt \udcff", "--prompt: got '\\udcff', wants some text, valid as UTF-8"),
    ("fill ", "TEXT: got '', wants a sentence with at least one [MASK]"),
    ("fill [MASK]\udcff", "TEXT: got '[MASK]\\udcff', wants a sentence with at least one [MASK], valid as UTF-8"),
    ("fill [MASK] --top 0", "--top: got 0, wants 1 to"),
    ("fill [MASK] --top 100000", "--top: got 100000, wants 1 to"),
    ("score realnvp missing.png", "IMAGE: got missing.png, wants an image that can be read"),
]


def refused(outcome, message):
    code, out, err = outcome
    assert code == 2 and not out
    lines = [line for line in err.splitlines() if line.startswith("hexad: ")]
    assert len(lines) == 1 and message in lines[0], err
    assert "Traceback" not in err


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(hexad, tmp_path, line, message):
    refused(hexad(*line.split(" ")), message)
    assert list(tmp_path.iterdir()) == []


def test_a_sentence_without_a_blank_and_a_prompt_beyond_the_context(hexad, tmp_path):
    refused(hexad("fill", "no blank here"), "wants a sentence with at least one [MASK]")
    refused(hexad("generate", "gpt", "--prompt", "The with statement. " * 2000), "--prompt: got")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_scored(hexad, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:45])
    refused(hexad("score", "realnvp", "text.png"), "IMAGE: got text.png, wants an image file")
    refused(hexad("score", "realnvp", "empty.png"), "IMAGE: got empty.png, wants an image file")
    refused(hexad("score", "realnvp", "wide.png"), "IMAGE: got wide.png of 9x8 pixels, wants 8x8 pixels")
    refused(hexad("score", "realnvp", "red.png"), "IMAGE: got red.png in colour, wants greys only")
    refused(hexad("score", "realnvp", "cut.png"), "IMAGE: got cut.png")
    refused(hexad("score", "realnvp", "."), "IMAGE: got .")
    refused(hexad("score", "gan", "good.png"), "MODEL: got 'gan', wants a model with a likelihood: vae pixelcnn")
    refused(hexad("score", "gpt", "good.png"), "MODEL: got 'gpt', wants a model with a likelihood")


@pytest.mark.parametrize("model", ["gan", "classifier"])
def test_damaged_checkpoints(hexad, tmp_path, model):
    command = ("evaluate", model) if model == "classifier" else ("generate", model)
    for suffix in ("safetensors", "json"):
        shutil.copy(checkpoint.SHIPPED / f"{model}.{suffix}", tmp_path)
    weights = tmp_path / f"{model}.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    refused(hexad(*command, "--checkpoint", tmp_path), f"{weights}: {len(content) - 100} bytes")
    weights.write_bytes(content[:-100] + bytes([content[-100] ^ 4]) + content[-99:])
    refused(hexad(*command, "--checkpoint", weights), f"{weights}: sha256 differs")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_made(hexad, monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("hexad.files.atomic_write", refuse)
    code, _, error = hexad("generate", "gan", "--n", "1", "--out", tmp_path / "one.png")
    assert code == 2 and error.endswith(f"hexad: {tmp_path}: No space left on device\n")


def test_an_existing_file_as_a_folder(hexad, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(hexad("generate", "gan", "--out", "file/x.png"), "--out: got file")
    refused(hexad("train", "gan", "--out", "file"), "--out: got file")
    assert (tmp_path / "file").read_text() == "mine"


def test_generate_writes_a_grid_that_its_seed_decides(hexad, tmp_path):
    assert hexad("generate", "gan", "--n", 5, "--class", 7, "--out", "sub/a.png")[0] == 0
    assert hexad("generate", "gan", "--n", 5, "--class", 7, "--out", "b.png")[0] == 0
    assert hexad("generate", "gan", "--n", 5, "--class", 7, "--seed", 9, "--out", "c.png")[0] == 0
    a, b, c = (np.asarray(Image.open(tmp_path / name)) for name in ("sub/a.png", "b.png", "c.png"))
    assert a.shape == (2 * (64 + 4) + 4, 3 * (64 + 4) + 4) and a.dtype == np.uint8
    assert (a == b).all() and (a != c).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "c.png", "sub"]


def test_a_generated_digit_can_be_scored(hexad):
    assert hexad("generate", "realnvp", "--n", 1, "--scale", 1, "--out", "x.png")[0] == 0
    assert Image.open("x.png").size == (8, 8)
    for model, word in (("realnvp", "log-likelihood"), ("vae", "at most"), ("pixelcnn", "log-likelihood")):
        code, out, err = hexad("score", model, "x.png")
        assert code == 0, err
        bits = registry.load(model)
        from hexad.images import read_digit

        wanted = float(registry.MODELS[model].load_task().score(bits, read_digit("x.png"))[0])
        assert f"{wanted:.4f} bits/dim" in out and word in out


def test_text_is_generated_and_blanks_are_filled(hexad):
    code, out, err = hexad("generate", "gpt", "--prompt", "The with statement", "--length", 8)
    assert code == 0 and out.startswith("The with statement") and len(out) > 20, err


def test_generate_passes_the_options_that_a_model_understands(hexad, tmp_path):
    greedy = ("generate", "gpt", "--prompt", "The", "--length", 4, "--temperature", 0)
    assert hexad(*greedy, "--seed", 1)[1] == hexad(*greedy, "--seed", 2)[1]
    one = ("generate", "gpt", "--prompt", "The", "--length", 4)
    assert hexad(*one, "--top-k", 1)[1] == hexad(*greedy)[1] == hexad(*one, "--top-p", 1e-6)[1]
    for name, temperature in (("cold", 0), ("warm", 1)):
        assert hexad("generate", "glow", "--n", 2, "--temperature", temperature, "--out", f"{name}.png")[0] == 0
    cold, warm = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("cold", "warm"))
    first, second = cold[:, 4:68], cold[:, 72:136]
    assert (first == second).all() and (cold != warm).any()


def test_fill_ranks_words_for_the_blank(hexad):
    code, out, err = hexad("fill", "The [MASK] statement", "--top", 3)
    assert code == 0, err
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    wanted = infill.fill(registry.load("bert"), "The [MASK] statement", 3)
    assert rows == [[f"{probability:.2%}", word, text] for text, word, probability in wanted]
    assert len(hexad("fill", "The [MASK] statement")[1].splitlines()) == 5


def test_a_forced_backend_serves(hexad, tmp_path):
    for backend in ("reference", "cpu"):
        assert hexad("generate", "gan", "--n", 3, "--backend", backend, "--out", f"{backend}.png")[0] == 0
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("reference", "cpu"))
    assert abs(a - b).max() <= 1


def test_evaluate_judges_and_its_exit_code_says_so(hexad, tmp_path):
    code, out, _ = hexad("evaluate", "classifier")
    assert code == 0 and "PASS" in out and "FAIL" not in out
    torch.manual_seed(0)
    model = Classifier()
    checkpoint.save("classifier", checkpoint.tensors_of(model), {}, tmp_path)
    code, out, _ = hexad("evaluate", "classifier", "--checkpoint", tmp_path)
    assert code == 1 and "FAIL" in out
    code, out, _ = hexad("evaluate", "classifier", "--checkpoint", tmp_path, "--json")
    gate = json.loads(out)["classifier"][0]
    assert code == 1 and gate["passed"] is False and gate["value"] < gate["bound"] == 0.97


def test_a_missing_model_fails_alone(hexad, monkeypatch):
    broken = registry.Entry("gan", "GAN", "", "digits", "hexad.tasks.not_there")
    monkeypatch.setattr(registry, "MODELS", {"gan": broken})
    code, out, _ = hexad("evaluate", "classifier", "gan", "--json")
    results = json.loads(out)
    assert code == 1 and results["classifier"][0]["passed"] and "not_there" in results["gan"]["error"]
    refused(hexad("generate", "gan"), "model 'gan' cannot be used here")


def test_train_writes_checkpoint_and_manifest(hexad, tmp_path):
    code, out, err = hexad("train", "classifier", "--steps", 3, "--out", "trained")
    assert code == 0 and "test accuracy" in out, err
    assert sorted(p.name for p in (tmp_path / "trained").iterdir()) == ["classifier.json", "classifier.safetensors"]
    model, manifest = registry.load_with_manifest("classifier", tmp_path / "trained")
    assert manifest["recipe"]["steps"] == 3 and manifest["data"]["source"].startswith("scikit-learn")
    assert manifest["gates"] == [g.to_json() for g in registry.INSTRUMENTS["classifier"].load_task().evaluate(model)]


SLOW_TRAINING = "from hexad.training import loop; loop.SAVE_EVERY = 0.1; from hexad.cli import main; main()"


def test_ctrl_c_while_training(tmp_path):
    """Exit code 130, one line, a resume file that a second run continues from, and nothing else."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SLOW_TRAINING, "train", "classifier", "--steps", "100000", "--out", tmp_path]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    resume = tmp_path / "classifier.resume.safetensors"
    while not resume.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("hexad: interrupted after step")
    assert [file.name for file in tmp_path.iterdir()] == [resume.name]


def test_ctrl_c_while_generating(hexad, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.MODELS["gan"].load_task(), "generate", interrupted)
    code, _, err = hexad("generate", "gan", "--out", "x.png")
    assert code == 130 and err.splitlines()[-1].startswith("hexad: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_doctor_explains_every_op(hexad):
    code, out, _ = hexad("doctor")
    assert code == 0
    for name in hexad_kernels.OPS:
        assert re.search(rf"│ {name} +│ fallback +│ serves ", out)
    for number in set(re.findall(r"\[(\d)\]  ", out)):
        assert re.search(rf"^\[{number}\] \w", out, re.M)
    for name in hexad_kernels.BACKENDS:
        assert re.search(rf"│ {name} +│ \w", out)
    assert torch.__version__ in out and out.count("intact") == len(registry.MODELS | registry.INSTRUMENTS)


def test_demo_checks_and_shows_what_it_ran(hexad, tmp_path, monkeypatch):
    chosen = {name: registry.MODELS[name] for name in ("gan", "gpt")}
    monkeypatch.setattr(registry, "MODELS", chosen)
    code, _out, err = hexad("demo", "--out", "page")
    assert code == 0, err
    results = json.loads((tmp_path / "page/demo.json").read_text())
    assert results.keys() == chosen.keys()
    assert results["gan"]["agreement"]["max_abs_difference"] <= 1e-3
    seconds = results["gpt"]["seconds"]
    assert results["gpt"]["ratio"] == pytest.approx(seconds["reference"] / seconds["kernels"])
    page = (tmp_path / "page/index.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page and "$" not in page.split("<main>")[0]
    assert {p.name for p in (tmp_path / "page").iterdir()} == {"demo.json", "index.html", "gan.png", "gpt.txt"}


def test_demo_says_where_two_runs_part():
    a = torch.zeros(2, 8, 8)
    b = a.clone()
    b[1, 3, 4] = 0.002
    assert demo.compare(a, a, exact=True) == {"agrees": True, "max_abs_difference": 0.0}
    assert not demo.compare(a, b, exact=False)["agrees"]
    assert demo.compare(a, b / 10, exact=False)["agrees"]
    assert demo.compare(a, b, exact=True)["first_difference"] == [1, 3, 4]
    assert not demo.compare(a, b * float("nan"), exact=False)["agrees"]
    assert demo.compare(["one", "two"], ["one", "twx"], exact=True) == {"agrees": False, "first_difference": [1, 2]}
    assert demo.compare(["one"], ["one"], exact=True)["agrees"]


def test_the_module_runs_from_the_command_line():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "hexad", "generate", "gan", "--n", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hexad: --n: got 0, wants 1 to 4096\n"


@pytest.mark.parametrize("command", ["generate gan", "train classifier", "doctor"])
def test_an_unknown_backend_in_the_environment(command, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HEXAD_BACKEND": "nope"}
    arguments = [sys.executable, "-m", "hexad", *command.split()]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "HEXAD_BACKEND: got 'nope', wants" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
