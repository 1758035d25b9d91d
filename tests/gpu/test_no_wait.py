"""A step's work makes no copy to the host: on a CPU, with the device's tensors without data (`FakeTensorMode`).

Only the forward pass runs this way: autograd needs a build with the device.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_essl.config import ViewArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.selection import HardAugment
from hf_essl.views import Views

CUDA = torch.device("cuda")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
"""Operations whose result, or its shape, the host must read from the device."""


class OnDevice(TorchDispatchMode):
    """Tensors on "cuda" have no data; those on the host are real. Notes each operation that waits for the device.

    A `FakeTensorMode` must be active around it.
    """

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = [x for x in tree_leaves((args, kwargs)) if isinstance(x, FakeTensor) and x.device.type == "cuda"]
        target = kwargs.get("device")
        if not there and (target is None or torch.device(target).type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if there and (_waits(func, args) or (target is not None and torch.device(target).type == "cpu")):
            self.waits.append(func.overloadpacket.__name__)
            return self._read(func, there[0])
        return func(*args, **kwargs)

    @staticmethod
    def _read(func, source):
        """What a real device could have sent: zeros."""
        if func.overloadpacket.__name__ == "_to_copy":
            with unset_fake_temporarily():
                return torch.zeros(source.shape, dtype=source.dtype)
        raise AssertionError(f"{func} waits for the device")


def _waits(func, args) -> bool:
    name = func.overloadpacket.__name__
    if name == "copy_":
        return args[0].device.type == "cpu"
    is_mask = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return name in WAITS or is_mask


def on_device(mode, module):
    """The module with parameters and buffers on the device."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(value.detach().to(CUDA), requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = value.to(CUDA)
    return module


@pytest.fixture
def mode():
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), OnDevice() as mode:
        yield mode


@pytest.fixture
def images(mode):
    return torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8).to(CUDA)


def arguments(**changes):
    fields = {
        "resolution": 32,
        "num_views": 4,
        "selection": "hard",
        "selection_resolution": 16,
        "compile_views": False,
    }
    return ViewArguments(**fields | changes)


def test_a_wait_is_seen(mode):
    number = torch.ones(3).to(CUDA)
    assert number.device.type == "cuda"
    number.cpu()
    assert mode.waits == ["_to_copy"]
    for wait in (lambda: bool(number.sum() > 0), lambda: number[number > 0], lambda: number.nonzero(), number.tolist):
        with pytest.raises(AssertionError, match="waits for the device"):
            wait()


@pytest.mark.parametrize("changes", [{}, {"jitter_order": "random"}, {"solarize_p": [0.3], "grayscale_p": 0.5}])
def test_views_are_sampled_and_rendered_without_a_wait(mode, images, changes):
    views = Views(arguments(**changes), seed=1)
    first, second = views(images)
    assert first.device.type == "cuda" and first.shape == second.shape == (8, 3, 32, 32)
    assert mode.waits == []


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_forward_pass_and_its_selection(mode, images, method):
    """The selection waits once, for the chosen pairs: the parameters of the views are on the host."""
    model = SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args).train()
    model, views = on_device(mode, model), Views(arguments(), seed=1)
    chosen = HardAugment(views)(model, images)
    assert mode.waits == ["_to_copy"] and chosen.pair.device.type == "cpu"
    mode.waits.clear()
    outputs = model(*views.render_all(images, [chosen.first, chosen.second]))
    assert outputs["loss"].shape == (8,) and outputs["loss"].device.type == "cuda"
    assert mode.waits == []
