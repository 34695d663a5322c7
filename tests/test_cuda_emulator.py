"""The emulator finds planted bugs, and leaves the same kernels without them alone."""

import ctypes

import pytest

from tests.cuda_emulator import build

SEEDS = range(1, 9)


@pytest.fixture(scope="module")
def library():
    return ctypes.CDLL(str(build("planted")))


def runner(function):
    def run(kernel, bug, seed):
        text = ctypes.create_string_buffer(512)
        status = function(kernel.encode(), bug.encode(), seed, text, len(text))
        return ["right", "wrong", text.value.decode()][status]

    return run


@pytest.fixture(scope="module")
def planted(library):
    return runner(library.planted)


@pytest.mark.parametrize("kernel", ["sum_twice", "exchange", "read_unset", "copy", "count", "hand_over", "add_four"])
def test_a_right_kernel_is_right_in_every_order(planted, kernel):
    assert {planted(kernel, "none", seed) for seed in SEEDS} == {"right"}


@pytest.mark.parametrize(
    ("kernel", "bug"),
    [("sum_twice", "no_barrier"), ("sum_twice", "no_second_barrier"), ("count", "not_atomic")],
)
def test_a_race_shows_under_some_seed(planted, kernel, bug):
    assert "wrong" in {planted(kernel, bug, seed) for seed in SEEDS}


def test_shared_memory_starts_as_nan(planted):
    assert planted("read_unset", "unset", 1) == "wrong"


@pytest.mark.parametrize(
    ("kernel", "bug", "complaint"),
    [
        ("exchange", "stuck", "deadlock: 32 threads (first 0) wait in __syncthreads planted.cu:"),
        ("sum_twice", "half_barrier", "meet at different barriers: thread 0 at planted.cu:"),
        ("sum_twice", "past_end", "thread 0 writes 0 bytes past the end of a shared array of 256 bytes"),
        ("sum_twice", "before_start", "a write before the start of a shared array of 256 bytes"),
        ("exchange", "bad_mask", "is not in its own lane mask, at planted.cu:"),
        ("exchange", "outside_mask", "which is outside the mask, at planted.cu:"),
        ("exchange", "exited_lane", "waits for lane 7, which has exited, at planted.cu:"),
        ("copy", "past_end", "thread 36 writes 0 bytes past the end of out (400 bytes)"),
        ("copy", "before_start", "thread 0 reads 4 bytes before the start of in (400 bytes)"),
        ("copy", "read_past_end", "thread 35 reads 0 bytes past the end of in (400 bytes)"),
        ("copy", "deep", "needs more than 64 KiB of local memory"),
        ("hand_over", "wrong_id", "at named barrier 1 (64 of 128 threads have come) planted.cu:"),
        ("hand_over", "wrong_count", "at named barrier 1 (128 of 160 threads have come) planted.cu:"),
        ("hand_over", "different_counts", "named barrier 1: for "),
        ("add_four", "misaligned", "'const struct float4' at 4 bytes past a multiple of 16, thread "),
    ],
)
def test_a_bug_is_reported_where_it_is(planted, kernel, bug, complaint):
    for seed in SEEDS:
        said = planted(kernel, bug, seed)
        assert complaint in said and said.startswith(f"{kernel}: block (0, 0, 0)") and f"(seed {seed})" in said


def test_a_seed_repeats_its_order(planted):
    first = [planted("sum_twice", "no_barrier", seed) for seed in SEEDS]
    assert first == [planted("sum_twice", "no_barrier", seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def planted_hopper(library):
    return runner(library.planted_hopper)


@pytest.mark.parametrize("kernel", ["along", "across"])
def test_hoppers_instructions_multiply(planted_hopper, kernel):
    assert {planted_hopper(kernel, "none", seed) for seed in SEEDS} == {"right"}


@pytest.mark.parametrize("bug", ["early_release", "no_wgmma_wait", "no_async_fence", "no_store_fence"])
def test_a_missing_wait_or_fence_shows(planted_hopper, bug):
    assert "wrong" in {planted_hopper("along", bug, seed) for seed in SEEDS}


@pytest.mark.parametrize("bug", ["no_barrier_wait", "wrong_parity", "no_expect"])
def test_a_wrong_phase_is_wrong_or_reported(planted_hopper, bug):
    said = {planted_hopper("along", bug, seed) for seed in SEEDS}
    assert said - {"right"}


@pytest.mark.parametrize(
    ("bug", "complaint"),
    [
        ("too_much_expected", "phase 0 (1 of 1 arrivals, 16 bytes to come) planted_hopper.cu:"),
        ("no_release", "phase 0 (0 of 128 arrivals, 0 bytes to come) planted_hopper.cu:"),
        ("no_wgmma_fence", "wgmma without a fence since the last commit: thread 0 at planted_hopper.cu:"),
        ("other_descriptor", "wgmma differs among the threads of its warpgroup: thread 7 at planted_hopper.cu:"),
        ("half_of_the_group", "64 threads (first 0) wait in wgmma (64 of 128 threads have come) planted_hopper.cu:"),
        ("no_init_fence", "an mbarrier that bulk copies can't see: no fence since its init, thread 128 at"),
        ("misaligned_tile", "a tile of a tensor map at 16 bytes past a multiple of 1024, thread 128 at"),
        ("too_many_arrivals", "more than 1 arrivals at mbarrier at shared address "),
    ],
)  # fmt: skip
def test_misuse_of_hoppers_instructions_is_reported(planted_hopper, bug, complaint):
    for seed in SEEDS:
        assert complaint in planted_hopper("along", bug, seed)


def test_a_store_under_way_at_exit_is_reported(planted_hopper):
    said = {planted_hopper("along", "no_store_wait", seed) for seed in SEEDS}
    assert any("the block exits while bulk copies are under way" in text for text in said)
