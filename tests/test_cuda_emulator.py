"""The emulator finds planted bugs, and leaves the same kernels without them alone."""

import ctypes

import pytest

from tests.cuda_emulator import build

BUGS = ["none", "no_barrier", "no_second_barrier", "half_barrier", "bad_mask", "outside_mask", "exited_lane",
        "past_end", "unset", "stuck"]  # fmt: skip
SEEDS = range(1, 9)


@pytest.fixture(scope="module")
def planted():
    library = ctypes.CDLL(str(build("planted")))

    def run(kernel, bug, seed):
        text = ctypes.create_string_buffer(512)
        status = library.planted(kernel.encode(), BUGS.index(bug), seed, text, len(text))
        return ["right", "wrong", text.value.decode()][status]

    return run


@pytest.mark.parametrize("kernel", ["sum_twice", "exchange", "read_unset"])
def test_a_right_kernel_is_right_in_every_order(planted, kernel):
    assert {planted(kernel, "none", seed) for seed in SEEDS} == {"right"}


@pytest.mark.parametrize("bug", ["no_barrier", "no_second_barrier"])
def test_a_missing_barrier_shows_under_some_seed(planted, bug):
    assert "wrong" in {planted("sum_twice", bug, seed) for seed in SEEDS}


def test_shared_memory_starts_as_nan(planted):
    assert planted("read_unset", "unset", 1) == "wrong"


@pytest.mark.parametrize(
    ("kernel", "bug", "complaint"),
    [
        ("exchange", "stuck", "deadlock: 32 threads (first 0) wait in __syncthreads planted.cu:"),
        ("sum_twice", "half_barrier", "meet at different barriers: thread 0 at planted.cu:"),
        ("sum_twice", "past_end", "a write past the end of a shared array of 256 bytes"),
        ("exchange", "bad_mask", "is not in its own lane mask, at planted.cu:"),
        ("exchange", "outside_mask", "which is outside the mask, at planted.cu:"),
        ("exchange", "exited_lane", "waits for lane 7, which has exited, at planted.cu:"),
    ],
)
def test_a_bug_is_reported_where_it_is(planted, kernel, bug, complaint):
    for seed in SEEDS:
        said = planted(kernel, bug, seed)
        assert complaint in said and said.startswith(f"{kernel}: block (0, 0, 0)") and f"(seed {seed})" in said


def test_a_seed_repeats_its_order(planted):
    first = [planted("sum_twice", "no_barrier", seed) for seed in SEEDS]
    assert first == [planted("sum_twice", "no_barrier", seed) for seed in SEEDS]
