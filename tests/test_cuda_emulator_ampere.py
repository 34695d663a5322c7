"""The emulated mma.sync, ldmatrix and cp.async: exact on integers, and bugs in their use are found."""

import ctypes

import pytest

from tests.cuda_emulator import build

BUGS = ["none", "no_wait", "short_wait", "no_barrier", "no_second_barrier", "unfilled", "misaligned", "apart"]
SEEDS = range(1, 4)


@pytest.fixture(scope="module")
def planted():
    library = ctypes.CDLL(str(build("planted")))

    def run(dtype, bug, seed):
        text = ctypes.create_string_buffer(512)
        status = library.planted_ampere(dtype.encode(), BUGS.index(bug), seed, text, len(text))
        return ["right", "wrong", text.value.decode()][status]

    return run


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_product_of_integers_is_exact_in_every_order(planted, dtype):
    assert {planted(dtype, "none", seed) for seed in SEEDS} == {"right"}


@pytest.mark.parametrize("bug", ["no_wait", "short_wait", "unfilled"])
def test_a_missing_wait_always_shows(planted, bug):
    assert {planted("bf16", bug, seed) for seed in SEEDS} == {"wrong"}


@pytest.mark.parametrize("bug", ["no_barrier", "no_second_barrier"])
def test_a_missing_barrier_shows_under_some_seed(planted, bug):
    assert any(planted("f16", bug, seed) == "wrong" for seed in range(1, 30))


def test_a_misaligned_copy_is_reported(planted):
    assert "cp.async's place wants 4-byte alignment" in planted("bf16", "misaligned", 1)


def test_lanes_at_different_instructions_are_reported(planted):
    assert "deadlock" in planted("bf16", "apart", 1) or "different instructions" in planted("bf16", "apart", 1)
