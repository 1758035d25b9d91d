"""Dropped patch tokens: timm's own PatchDropout, a pass by hand, what is counted, and who sees all of them."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_essl.methods import METHODS, SSLModel
from hf_essl.methods.tokens import check_tokens, install_token_dropout, keep_tokens, patch_count
from hf_essl.views.tokens import kept_count, kept_tokens

FLEXIBLE = {"dynamic_img_size": True}


def vit(name="test_vit", **arguments):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **{**FLEXIBLE, **arguments}).eval()
    install_token_dropout(network)
    return network


def model(method="simsiam", **arguments):
    torch.manual_seed(0)
    settings = {"method_args": METHODS[method].small_args, "backbone_args": {"patch_size": 8, **arguments}}
    return SSLModel.from_timm("test_vit", method, resolutions=(32,), **settings).train()


@pytest.fixture
def pair():
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, 32, 32).unbind()


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("resolution", [64, 96])
def test_a_vit_without_tokens_is_the_pass_by_hand(name, resolution):
    """Position embeddings first, at the resolution's own grid; then blocks on the kept patches and the prefix."""
    network, images = vit(name), torch.randn(3, 3, resolution, resolution)
    kept = kept_tokens(torch.arange(3), patch_count(network, resolution), 0.5)
    with keep_tokens(network, kept):
        found = network(images)
    tokens = network._pos_embed(network.patch_embed(images))
    prefix = network.num_prefix_tokens
    rows = [torch.cat([row[:prefix], row[prefix + index]]) for row, index in zip(tokens, kept, strict=True)]
    expected = network.forward_head(network.norm(network.blocks(network.norm_pre(torch.stack(rows)))))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, network(images), atol=1e-3)


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_equal_to_timms_patch_dropout_with_its_own_indices(name):
    """Also the rotary position embeddings of DINOv3 and EVA-02 follow the kept patches."""
    torch.manual_seed(0)
    size, depth = (56, {"depth": 2}) if "14" in name else (64, {"depth": 2})
    theirs = timm.create_model(name, num_classes=0, patch_drop_rate=0.5, img_size=size, **depth).train()
    ours = timm.create_model(name, num_classes=0, img_size=size, **depth).train()
    ours.load_state_dict(theirs.state_dict())
    install_token_dropout(ours)
    patches, images = patch_count(ours, size), torch.randn(2, 3, size, size)
    torch.manual_seed(5)
    kept = torch.argsort(torch.randn(2, patches), dim=-1)[:, : patches // 2]  # as PatchDropout draws
    torch.manual_seed(5)
    expected = theirs(images)
    with keep_tokens(ours, kept):
        torch.testing.assert_close(ours(images), expected)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_operations_of_a_forward_pass_by_hand(share):
    """A block of width C on T tokens: 12 C^2 T MACs in its four layers, and 2 C T^2 in the attention."""
    network = vit(patch_size=8)
    patches = patch_count(network, 64)
    assert patches == 64
    kept = kept_tokens(torch.arange(2), patches, share)
    with keep_tokens(network, kept), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.randn(2, 3, 64, 64))  # on a CPU, torch counts no other kernel of the attention
    width, depth, hidden = network.embed_dim, len(network.blocks), network.blocks[0].mlp.fc1.out_features
    tokens = kept_count(64, share) + 1
    block = (4 * width**2 + 2 * width * hidden) * tokens + 2 * width * tokens**2
    macs = 64 * 3 * 8 * 8 * width + depth * block  # all patches are embedded
    assert counter.get_total_flops() == 2 * 2 * macs


def test_all_tokens_are_bit_equal_to_none_installed():
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=0).eval()
    ours, images = vit(dynamic_img_size=False), torch.randn(2, 3, 160, 160)
    assert type(ours.patch_drop) is not type(plain.patch_drop)
    assert plain.state_dict().keys() == ours.state_dict().keys()
    expected = plain(images)
    assert torch.equal(ours(images), expected)
    with keep_tokens(ours, None):
        assert torch.equal(ours(images), expected)
    with keep_tokens(ours, torch.arange(100)[None]):
        assert torch.equal(ours(images), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_student_sees_its_tokens_and_the_teacher_all(method, pair):
    ssl, seen = model(method), []
    for network in (ssl.backbone, *(teacher.backbone for teacher in ssl.teachers)):
        is_student = network is ssl.backbone
        network.blocks[0].register_forward_pre_hook(
            lambda module, inputs, is_student=is_student: seen.append((is_student, inputs[0].shape[1] - 1))
        )
    kept = kept_tokens(torch.arange(8), 16, 0.25).view(4, 2, 4)
    ssl(*pair, tokens=kept)
    assert {tokens for is_student, tokens in seen if is_student} == {4}
    assert {tokens for is_student, tokens in seen if not is_student} == ({16} if ssl.has_teacher else set())
    seen.clear()
    ssl(*pair, tokens=kept, teacher_tokens=torch.tensor([[0, 5, 9]]))
    assert {tokens for is_student, tokens in seen if not is_student} == ({3} if ssl.has_teacher else set())
    seen.clear()
    ssl(*pair)
    assert {tokens for _, tokens in seen} == {16}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_has_the_gradient_of_each_views_own_tokens(checkpointing, pair):
    """By hand: the embeddings of both views, made one after the other, and SimSiam's loss on them."""
    ssl = model()
    if checkpointing:
        ssl.activation_checkpointing_enable()
    kept = kept_tokens(torch.arange(8), 16, 0.5).view(4, 2, 8)
    ssl(*pair, tokens=kept)["loss"].mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in ssl.named_parameters()}
    other = model()
    outputs = []
    for view, index in zip(pair, kept.unbind(dim=1), strict=True):
        other.backbone.patch_drop = Given(index)
        outputs.append(other.embed(view))
    (p1, z1), (p2, z2) = outputs
    loss = -(nn.functional.cosine_similarity(p1, z2.detach()) + nn.functional.cosine_similarity(p2, z1.detach())) / 2
    loss.mean().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


class Given(nn.Module):
    """Keeps these patch tokens, row by row."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, tokens):
        return torch.stack([torch.cat([row[:1], row[1:][i]]) for row, i in zip(tokens, self.index, strict=True)])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("test_resnet", {}, "ResNet cannot drop patch tokens: its convolutions"),
        ("test_convnext", {}, "ConvNeXt cannot drop patch tokens"),
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer cannot drop patch tokens: .*windows"),
        ("samvit_base_patch16", {"depth": 1}, "VisionTransformerSAM cannot drop patch tokens: .*windows"),
        ("beit_base_patch16_224", {"depth": 1}, "Beit cannot drop patch tokens: .*relative positions"),
        ("test_vit", {"patch_drop_rate": 0.5}, "patch_drop_rate, with which VisionTransformer .*remove it"),
    ],
)
def test_networks_that_cannot_drop_tokens_are_refused_with_the_reason(name, arguments, message):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0, **arguments)
    with pytest.raises(ValueError, match=message):
        check_tokens(network, [224])
