"""bench/gpu.py without a GPU: budgets, verdicts and failures by fakes, the selection table, and a dry run."""

import json
import math
import sys

import pytest
import torch
from bench import gpu, gpu_report, gpu_tests, gpu_tune, gpu_worker
from bench.gpu_device import DryDevice
from bench.gpu_rows import Measured, NoKernel, Row, Target, table

import hexad_kernels
from hexad_kernels import op, selection
from tests.cases import Call


class Fake(DryDevice):
    timed = True

    def __init__(self, times=()):
        super().__init__()
        self.times = dict(times)
        self.ceilings = {"copy_gbs": 4000.0, "matmul_tflops": 800.0}

    def seconds(self, call, **options):
        return self.times[op._forced.get()]


def row(measure, *targets, cost=1.0):
    return Row("work", "anchor", targets or (Target("of copy", 0.9),), measure, cost=cost)


@pytest.mark.parametrize(
    ("figures", "excess", "verdict"),
    [
        ({"of copy": 0.91, "us a step": 4.0}, 0.5, "met"),
        ({"of copy": 0.91, "us a step": 6.0}, 0.5, "missed"),
        ({"of copy": 0.80, "us a step": 4.0}, 0.5, "missed"),
        ({"of copy": 0.95}, 0.5, "met"),  # an anchor that could not be had does not count
        ({}, 0.0, "not measured"),
        ({"of copy": 2.0, "us a step": 1.0}, 1.5, "wrong result"),
    ],
)
def test_verdicts(figures, excess, verdict):
    targets = Target("of copy", 0.9), Target("us a step", 5.0, upper=True)
    found = gpu_report.run_row(row(lambda d: Measured(figures, {"cuda": 1e-3}, excess=excess), *targets), Fake())
    assert found["verdict"] == verdict
    assert verdict in gpu_report.line({"work": "work"} | found)


def test_a_failing_row_is_reported_and_the_rest_go_on():
    def broken(d):
        raise RuntimeError("CUDA error: too late")

    def refused(d):
        raise NoKernel("cuda: float16")

    def inaccurate(d):
        raise AssertionError("output 0: error is 3.00 of what is allowed")

    rows = [row(broken), row(refused), row(inaccurate), row(lambda d: Measured({"of copy": 1.0}, {"cuda": 1e-3}))]
    found = gpu_report.run_rows(rows, Fake(), until=math.inf)
    assert [r["verdict"] for r in found] == ["failed", "no kernel", "wrong result", "met"]
    assert "too late" in found[0]["note"] and "too late" in found[0]["traceback"]
    assert not gpu_report.passed(found)
    assert gpu_report.passed([found[1], found[3]])


def test_rows_beyond_the_budget_are_named_and_not_run():
    now = [0.0]

    def slow(d):
        now[0] += 10
        return Measured({"of copy": 1.0}, {"cuda": 1e-3})

    rows = [row(slow, cost=10), row(slow, cost=10), row(slow, cost=3)]
    found = gpu_report.run_rows(rows, Fake(), until=25, clock=lambda: now[0])
    assert [r["verdict"] for r in found] == ["met", "met", "met"]
    now[0] = 0
    found = gpu_report.run_rows(rows, Fake(), until=15, clock=lambda: now[0])
    assert [r["verdict"] for r in found] == ["met", "skipped: no time left", "met"]


WORKER = """
import json, os, sys, time
path, first = sys.argv[1], int(sys.argv[2])
with open(path, "a") as out:
    print(json.dumps({"works": ["a", "b", "c", "d", "e"]}), file=out, flush=True)
    for i in range(first, 5):
        if i == 1:
            sys.exit("device on fire")
        if i == 3:
            time.sleep(60)
        print(json.dumps({"work": "abcde"[i], "verdict": "met" if i != 2 else "failed"}), file=out, flush=True)
        if i == 2:
            sys.exit(3)
"""


def test_a_row_that_kills_or_hangs_its_process_costs_no_other(tmp_path):
    def command(first, seconds):
        return [sys.executable, "-S", "-c", WORKER, str(tmp_path / "rows"), str(first)]

    head, rows = gpu_worker.collect(command, tmp_path / "rows", until=math.inf, silence=1.0)
    assert [r["verdict"] for r in rows] == ["met", "failed", "failed", "failed", "met"]
    assert [r["work"] for r in rows] == head["works"]
    assert "device on fire" in rows[1]["note"] and "wrote nothing" in rows[3]["note"]
    with pytest.raises(RuntimeError, match="did not start: exit status 1: no"):
        gpu_worker.collect(
            lambda *_: [sys.executable, "-S", "-c", "raise SystemExit('no')"], tmp_path / "x", until=math.inf
        )


def test_commands_are_stopped_when_their_time_is_up():
    done = gpu_tests.run("sleeper", [sys.executable, "-S", "-c", "import time; time.sleep(30)"], 1.5)
    assert not done.passed and done.seconds < 10 and "stopped" in done.summary
    assert not gpu_tests.run("late", ["true"], 0.5).passed
    assert gpu_tests.run("quick", [sys.executable, "-S", "-c", "print('fine')"], 20).summary == "fine"


def test_the_table_names_each_target_once_and_fits_its_time():
    rows = table()
    assert len({r.work for r in rows}) == len(rows)
    assert all(r.targets for r in rows)
    assert sum(r.needs(True) for r in rows if r.quick) <= 0.5 * 60 * gpu.MINUTES[True]
    assert sum(r.needs(False) for r in rows) <= 0.5 * 60 * gpu.MINUTES[False]


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "80"), ((9, 0), "90a"), ((10, 0), "100a")])
def test_the_chip_at_hand_is_built_for(capability, name):
    assert gpu_tests.chip(capability) == name


def test_json_and_plot(tmp_path):
    found = gpu_report.run_row(row(lambda d: Measured({"of copy": 0.5}, {"cuda": math.nan}, {"eager": 1.0})), Fake())
    rows = [{"work": "work", "anchor": "anchor"} | found]
    files = gpu_report.write(tmp_path, {"machine": {"device": "none"}, "rows": rows})
    assert json.loads(files[0].read_text())["rows"][0]["seconds"] == {"cuda": None}
    assert all(f.exists() for f in files)


# The selection table


def call(*shape, dtype=torch.float32):
    return Call((torch.zeros(*shape, dtype=dtype), torch.zeros(shape[0], shape[1] // 2, *shape[2:], dtype=dtype)))


def test_tuning_keeps_the_faster_backend_of_a_class(monkeypatch, tmp_path):
    monkeypatch.setattr(hexad_kernels.OPS["coupling"], "refusal", lambda name, args: None)
    monkeypatch.setattr(selection, "order", lambda name, args: ("cuda", "triton"))
    calls = [("coupling", call(2, 4, 3)), ("coupling", call(2, 4, 3, dtype=torch.bfloat16)), ("coupling", call(2, 2))]
    found, late = gpu_tune.measure(Fake({"cuda": 2e-6, "triton": 1e-6}), 1, lambda: 0, calls)
    assert found == {"coupling": {"float32/small": "triton", "bfloat16/small": "triton"}} and not late
    path = tmp_path / "selection.json"
    path.write_text(json.dumps(selection.read() | {"measured": {"sm_80": {"step": {"float32/large": "cuda"}}}}))
    gpu_tune.write(found, "sm_90", path)
    assert selection.read(path)["measured"] == {"sm_80": {"step": {"float32/large": "cuda"}}, "sm_90": found}
    assert gpu_tune.measure(Fake(), 1, lambda: 2, calls) == ({}, ["coupling"])
    assert gpu_tune.faster([{"cuda": 1.0, "triton": 10.0}, {"cuda": 5e-6, "triton": 1e-6}]) == "cuda"


def test_order_follows_the_table_where_it_was_measured(monkeypatch):
    class OnDevice:
        """A tensor that says it is on a GPU."""

        device = torch.device("cuda", 0)
        is_cuda = True

    monkeypatch.setattr(selection, "chip", lambda index: "sm_90")
    monkeypatch.setattr(selection, "tensors", lambda args: [OnDevice()])
    monkeypatch.setattr(selection, "call_class", lambda args: "float32/large")
    usual = {"default": ["cuda", "triton"], "unmeasured": {"norm": ["triton", "cuda"]}}
    monkeypatch.setattr(selection, "_table", usual | {"measured": {}})
    assert selection.order("step", ()) == ("cuda", "triton")
    assert selection.order("norm", ()) == ("triton", "cuda")
    monkeypatch.setattr(selection, "_table", usual | {"measured": {"sm_90": {"step": {"float32/large": "triton"}}}})
    assert selection.order("step", ()) == ("triton", "cuda")
    assert selection.order("coupling", ()) == ("cuda", "triton")


def test_a_backend_that_refuses_is_never_chosen(monkeypatch):
    monkeypatch.setattr(op, "_preferred", lambda name, args: ("triton", "cuda"))
    found = hexad_kernels.explain("coupling", *call(2, 4, 3).args)
    assert found.served_by == "reference" and {"cuda", "triton"} <= set(found.refusals)


def test_the_table_that_ships_is_well_formed():
    shipped = selection.read()
    backends = {"cuda", "triton"}
    assert set(shipped["default"]) == backends
    assert all(name in hexad_kernels.OPS and set(order) == backends for name, order in shipped["unmeasured"].items())
    for chip, ops in shipped["measured"].items():
        assert chip.startswith("sm_")
        assert all(name in hexad_kernels.OPS and set(kinds.values()) <= backends for name, kinds in ops.items())


def test_a_dry_run_ends_with_the_table(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HEXAD_CUDA_EMULATED", "")  # set by the run, and put back after it
    assert gpu.main(["--dry-run", "--no-build", "--no-tests", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["dry_run"] and report["ceilings"] == {"copy_gbs": None, "matmul_tflops": None}
    assert len(report["rows"]) == len(table())
    for found in report["rows"]:
        assert found["verdict"] in ("not measured", "no kernel"), found
        assert found["work"] in printed
    assert "no speed was measured" in printed


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err
