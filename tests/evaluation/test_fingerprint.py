"""The digest of weights, against hashlib over the bytes that it stands for."""

import hashlib

import torch

from hf_essl.evaluation.fingerprint import fingerprint


def test_names_types_shapes_and_bytes_in_the_order_of_the_names():
    weights = {"b": torch.tensor(3), "a": torch.tensor([[1.0], [-2.0]])}
    text = b"a torch.float32 (2, 1)" + b"\0\0\x80?\0\0\0\xc0" + b"b torch.int64 ()" + b"\3" + 7 * b"\0"
    assert fingerprint(weights) == hashlib.sha256(text).hexdigest()


def test_the_same_wherever_and_however_it_lies():
    whole = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    strided = whole.t().contiguous().t()
    assert not strided.is_contiguous() and fingerprint({"w": strided}) == fingerprint({"w": whole})
    assert fingerprint({"w": whole.bfloat16()}) != fingerprint({"w": whole}) != fingerprint({"w": whole.view(6, 4)})
    whole[0, 0] += 1e-6
    assert fingerprint({"w": strided}) != fingerprint({"w": whole})
