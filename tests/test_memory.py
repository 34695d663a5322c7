"""Memory of large outputs: used again when nobody refers to it, and never before; large pages for the rest."""

import threading

import pytest
import torch

from hexad_kernels import memory

ROWS = memory.LARGE // 4 // 1024


@pytest.fixture(autouse=True)
def nothing_kept():
    memory.release()
    yield
    memory.release()


def large(rows=ROWS, dtype=torch.float32):
    return memory.empty_like(torch.empty((rows, 1024), dtype=dtype))


def test_a_freed_block_is_used_again():
    first = large()
    place = first.data_ptr()
    del first
    assert large().data_ptr() == place


@pytest.mark.parametrize("keep", [lambda t: t[5:7], lambda t: t.untyped_storage(), lambda t: t.numpy()])
def test_a_block_that_anything_refers_to_is_not(keep):
    first = large().fill_(3)
    place, kept = first.data_ptr(), keep(first)
    del first
    assert large().data_ptr() != place
    del kept
    assert large().data_ptr() == place


def test_small_tensors_are_plain():
    assert large(ROWS - 1).untyped_storage().resizable()
    assert not memory._blocks


def test_it_is_like_the_tensor_it_is_made_after():
    for like in (torch.empty(ROWS, 1024).t(), torch.empty(2 * ROWS, 1024, dtype=torch.bfloat16)):
        out = memory.empty_like(like)
        assert (out.shape, out.dtype, out.device) == (like.shape, like.dtype, like.device)
        assert out.is_contiguous()
        assert not out._is_view()


def test_it_is_where_the_tensor_is_whatever_the_default():
    like = torch.empty((ROWS, 1024))
    with torch.device("meta"):
        assert memory.empty_like(like).is_cpu


def test_no_more_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(memory, "KEEP", 3 * memory.LARGE)
    alive = [large() for _ in range(5)]
    assert sum(map(len, memory._blocks)) <= 3 * memory.LARGE
    assert len({t.data_ptr() for t in alive}) == 5


def test_threads_never_share_a_block():
    wrong = []

    def work(number):
        for _ in range(30):
            out = large()
            out[0] = number
            if not (out[0] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_it_can_be_shared_with_other_processes():
    out = large().fill_(2)
    assert out.share_memory_().is_shared()
    assert (out == 2).all()


def test_counters_are_zero_and_kept():
    first = memory.counters(torch.zeros(1), 10)
    assert first.dtype == torch.int32 and len(first) >= 10 and not first.any()
    assert memory.counters(torch.zeros(1), len(first)) is first
    more = memory.counters(torch.zeros(1), len(first) + 1)
    assert len(more) > len(first) and not more.any()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_zeros_on_large_pages(device):
    rows = memory.PAGE // 2048
    out = memory.zeros((rows, 1024), torch.bfloat16, device)
    assert (out.shape, out.dtype) == ((rows, 1024), torch.bfloat16)
    assert not out.any()
    assert not out.untyped_storage().resizable()  # a block of its own
    assert not memory._blocks  # that nobody keeps
    assert memory.zeros((rows - 1, 1024), torch.bfloat16).untyped_storage().resizable()


def test_what_is_moved_to_large_pages_is_the_same():
    value = torch.randn(1024, memory.PAGE // 4096).t()
    moved = memory.on_large_pages(value)
    assert torch.equal(moved, value)
    assert moved.is_contiguous()
    assert not moved.untyped_storage().resizable()
    assert memory.on_large_pages(value[:9]).untyped_storage().resizable()


def test_a_block_of_large_pages_goes_with_its_tensor():
    def mapped():
        with open("/proc/self/statm") as found:
            return int(found.read().split()[0])

    memory.zeros((1 << 20,), torch.float32)
    before = mapped()
    for _ in range(64):
        memory.zeros((1 << 20,), torch.float32)  # 4 MB
    assert mapped() - before < 16 << 20 >> 12


def test_a_tensor_of_no_memory_takes_none():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        assert type(memory.zeros((memory.PAGE,), torch.float32)) is FakeTensor
    assert memory.zeros((memory.PAGE,), torch.float32, "meta").is_meta
