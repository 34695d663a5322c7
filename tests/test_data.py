import numpy as np
import pytest
import torch

from hexad import data


def test_digits_are_all_there_and_split_without_overlap():
    from sklearn.datasets import load_digits

    train, test = data.digits()
    assert train.x.shape == (1500, 8, 8) and test.x.shape == (297, 8, 8)
    assert train.x.dtype == torch.uint8 and train.y.dtype == torch.int64
    together = np.concatenate([train.x.numpy(), test.x.numpy()]).reshape(-1, 64)
    rows = sorted(map(tuple, np.column_stack([together, torch.cat([train.y, test.y]).numpy()]).tolist()))
    pixels, classes = load_digits(return_X_y=True)
    assert rows == sorted(map(tuple, np.column_stack([pixels, classes]).astype(int).tolist()))


def test_the_split_never_moves():
    assert data.provenance("digits")["sha256"].startswith("ad4c187ce31e3fdc")
    assert data.digits().test.y.unique().numel() == 10


def test_a_caller_cannot_spoil_the_data_for_the_next():
    data.digits().train.x.zero_()
    assert data.digits().train.x.any()


def test_the_last_tenth_of_the_text_is_held_out():
    from pydoc_data.topics import topics

    train, test = data.topics()
    assert train + test == "\n\n".join(topics[key] for key in sorted(topics))
    assert len(test) == (len(train) + len(test)) // 10


def test_dequantise_and_quantise_are_inverse():
    levels = torch.arange(17, dtype=torch.uint8).repeat(100, 1)
    y = data.dequantise(levels, torch.Generator().manual_seed(0))
    assert y.dtype == torch.float32 and y.min() >= 0 and y.max() < 1
    assert torch.equal((y * 17).floor().to(torch.uint8), levels)
    assert torch.equal(y, data.dequantise(levels, torch.Generator().manual_seed(0)))
    assert torch.equal(data.quantise(levels / 16), levels)


def test_provenance_names_versions_and_hashes():
    import hashlib
    import platform

    import sklearn

    assert data.provenance("digits")["source"] == f"scikit-learn {sklearn.__version__} load_digits"
    text = data.provenance("text")
    assert text["sha256"] == hashlib.sha256("".join(data.topics()).encode()).hexdigest()
    assert text["cpython"] == platform.python_version()
    with pytest.raises(ValueError, match="kind: got 'sound'"):
        data.provenance("sound")
