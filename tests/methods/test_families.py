"""Every family of timm: its smallest network is built, trains a step, is priced, exported and reloaded.

The families are timm's modules. `depth` and the like make some networks smaller; they change no outcome.
"""

import json

import pytest
import timm
import torch

from hf_essl import export_backbone
from hf_essl.cost import FlopCounter
from hf_essl.evaluation.backbone import load_backbone
from hf_essl.methods import METHODS, SSLModel
from hf_essl.methods.backbone import accepted_arguments
from hf_essl.methods.checkpointing import check_checkpointing

ANY, LARGE = "any size", "any size from 96 px"
BUILT = "one size per run, any"  # the network is built for it
ONE = "one size only"
SIZES = {ANY: (64, 96), LARGE: (96, 128), BUILT: (64,)}
OWN = {"halonet_h1": 256, "efficientformer_l1": 224}  # the sizes of `ONE`
FOUR, THREE, TWO = [1, 1, 1, 1], [1, 1, 1], {"depth": 2}

FAMILIES = {  # by timm's module: a small network, arguments that make it smaller, and what sizes it accepts
    "beit": ("beit_base_patch16_224", TWO, BUILT),
    "byoanet": ("halonet_h1", {}, ONE),
    "byobnet": ("test_byobnet", {}, ANY),
    "cait": ("cait_xxs24_224", TWO, BUILT),
    "coat": ("coat_tiny", {"serial_depths": FOUR, "parallel_depth": 1}, BUILT),
    "convit": ("convit_tiny", TWO, BUILT),
    "convmixer": ("convmixer_768_32", {}, ANY),
    "convnext": ("test_convnext", {}, ANY),
    "cpubone": ("cpubone_nano", {}, ANY),
    "crossvit": ("crossvit_tiny_240", {}, ANY),
    "csatv2": ("csatv2", {}, ANY),
    "cspnet": ("cs3darknet_focus_s", {}, ANY),
    "cspnext": ("cspnext_tiny", {}, ANY),
    "davit": ("davit_tiny", {"depths": FOUR}, ANY),
    "deepseek_vit": ("deepseek_vit_412m", TWO, ANY),
    "deit": ("deit_tiny_patch16_224", TWO, ANY),
    "densenet": ("densenet121", {"block_config": FOUR}, ANY),
    "dla": ("dla46x_c", {}, ANY),
    "dpn": ("dpn48b", {}, ANY),
    "edgenext": ("edgenext_xx_small", {}, ANY),
    "efficientformer": ("efficientformer_l1", {"depths": FOUR}, ONE),
    "efficientformer_v2": ("efficientformerv2_s0", {"depths": FOUR}, BUILT),
    "efficientnet": ("test_efficientnet", {}, ANY),
    "efficientvim": ("efficientvim_m1", {"depths": THREE}, ANY),
    "efficientvit_mit": ("efficientvit_b0", {}, ANY),
    "efficientvit_msra": ("efficientvit_m0", {}, ANY),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", TWO, ANY),
    "fasternet": ("fasternet_t0", {}, ANY),
    "fastvit": ("fastvit_t8", {"layers": FOUR}, ANY),
    "focalnet": ("focalnet_tiny_srf", {}, ANY),
    "gcvit": ("gcvit_xxtiny", {}, BUILT),
    "gemma4_vit": ("gemma4_vit_167m", TWO, ANY),
    "ghostnet": ("ghostnet_050", {}, ANY),
    "hardcorenas": ("hardcorenas_b", {}, ANY),
    "hgnet": ("hgnetv2_b0", {}, ANY),
    "hiera": ("hiera_tiny_224", {"stages": [1, 1, 2, 1]}, BUILT),
    "hieradet_sam2": ("sam2_hiera_tiny", {"stages": [1, 1, 2, 1]}, ANY),
    "hrnet": ("hrnet_w18_small", {}, ANY),
    "iformer": ("iformer_t", {}, ANY),
    "inception_next": ("inception_next_atto", {"depths": FOUR}, ANY),
    "inception_resnet_v2": ("inception_resnet_v2", {}, LARGE),
    "inception_v3": ("inception_v3", {}, LARGE),
    "inception_v4": ("inception_v4", {}, LARGE),
    "lcnetv2": ("lcnetv2_small", {}, ANY),
    "levit": ("levit_128s", {"depth": THREE}, BUILT),
    "lowformer": ("lowformer_b0", {}, ANY),
    "mambaout": ("test_mambaout", {}, ANY),
    "maxxvit": ("test_coatnet", {}, BUILT),
    "metaformer": ("poolformerv2_s12", {}, ANY),
    "mlp_mixer": ("gmlp_ti16_224", {}, BUILT),
    "mobilenetv3": ("lcnet_035", {}, ANY),
    "mobilenetv5": ("mobilenetv5_base", {}, ANY),
    "mobilevit": ("mobilevit_xxs", {}, ANY),
    "mvitv2": ("mvitv2_tiny", {}, ANY),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", TWO, ANY),
    "nasnet": ("nasnetalarge", {}, ANY),
    "nest": ("nest_tiny", {}, BUILT),
    "nextvit": ("nextvit_small", {}, ANY),
    "nfnet": ("test_nfnet", {}, ANY),
    "pit": ("pit_ti_224", {"depth": THREE}, BUILT),
    "pnasnet": ("pnasnet5large", {}, ANY),
    "pvt_v2": ("pvt_v2_b0", {"depths": FOUR}, ANY),
    "qwen3_vit": ("qwen3_vit_88m", TWO, ANY),
    "rdnet": ("rdnet_tiny", {}, ANY),
    "regnet": ("regnetx_002", {}, ANY),
    "repghost": ("repghostnet_050", {}, ANY),
    "repvit": ("repvit_m1", {"depth": FOUR}, ANY),
    "res2net": ("res2next50", {"layers": FOUR}, ANY),
    "resnest": ("resnest14d", {}, ANY),
    "resnet": ("test_resnet", {}, ANY),
    "resnetv2": ("resnetv2_18", {"layers": FOUR}, ANY),
    "rexnet": ("rexnet_100", {}, ANY),
    "selecsls": ("selecsls42", {}, ANY),
    "senet": ("legacy_seresnet18", {"layers": FOUR}, ANY),
    "sequencer": ("sequencer2d_s", {"layers": FOUR}, ANY),
    "shvit": ("shvit_s1", {"depth": THREE}, ANY),
    "sknet": ("skresnet18", {"layers": FOUR}, ANY),
    "starnet": ("starnet_s050", {}, ANY),
    "swiftformer": ("swiftformer_xs", {"layers": FOUR}, ANY),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"depths": FOUR}, ANY),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", {"depths": FOUR}, ANY),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"depths": FOUR}, ANY),
    "tiny_vit": ("tiny_vit_5m_224", {"depths": FOUR}, ANY),
    "tnt": ("tnt_s_legacy_patch16_224", TWO, BUILT),
    "tresnet": ("tresnet_m", {"layers": FOUR}, ANY),
    "twins": ("twins_svt_small", {"depths": FOUR}, ANY),
    "vgg": ("vgg11", {}, ANY),
    "visformer": ("visformer_tiny", TWO, BUILT),
    "vision_transformer": ("test_vit", {}, ANY),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", TWO, ANY),
    "vision_transformer_relpos": ("test_vit_relpos", {}, BUILT),
    "vision_transformer_sam": ("samvit_base_patch16_224", TWO, ANY),
    "vitamin": ("vitamin_small_224", TWO, ANY),
    "volo": ("volo_d1_224", {}, BUILT),
    "vovnet": ("ese_vovnet19b_slim_dw", {}, ANY),
    "xception": ("legacy_xception", {}, ANY),
    "xception_aligned": ("xception41p", {}, ANY),
    "xcit": ("xcit_nano_12_p8_224", TWO, ANY),
}
WITHOUT_CHECKPOINTING = set(
    "coat convit crossvit cspnet dla hrnet inception_resnet_v2 inception_v3 inception_v4 nasnet pit pnasnet "
    "selecsls senet sequencer twins vgg xception".split()
)
UNUSED = {"convit": ["backbone.cls_token"], "efficientvim": ["backbone.weights"]}  # parameters that do not train
HEADS = {"projector_hidden": 16, **METHODS["simsiam"].small_args}


def test_the_list_is_complete():
    assert set(FAMILIES) == set(timm.list_modules())
    assert all(name in timm.list_models(module=module) for module, (name, _, _) in FAMILIES.items())


def train_one_step(model, size):
    """Every parameter that requires a gradient gets one: DDP needs that."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loss = model.train()(*torch.randn(2, 2, 3, size, size))["loss"].mean()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, tmp_path):
    torch.manual_seed(0)
    name, arguments, outcome = FAMILIES[family]
    sizes = SIZES.get(outcome) or (OWN[name],)
    if outcome in (LARGE, BUILT, ONE):
        accepts = {
            LARGE: "it accepts 96, 128, ",
            BUILT: "it accepts one size per run",
            ONE: f"accepts {sizes[0]} only",
        }
        with pytest.raises(ValueError, match=f"backbone is '{name}', which does not accept .*{accepts[outcome]}"):
            accepted_arguments(name, arguments, (64, 96))
    model = SSLModel.from_timm(name, method_args=HEADS, backbone_args=arguments, resolutions=sizes)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == UNUSED.get(family, [])
    train_one_step(model, sizes[0])
    counter = FlopCounter(model)
    step, backbone = counter.step(sizes[0]), 4 * counter.backbone_macs(sizes[0])  # of two views, two per MAC
    assert step.backward > step.forward >= backbone > 0

    folder = export_backbone(model, tmp_path / "backbone", input_size=sizes[-1])
    loaded = load_backbone(folder)
    assert loaded.resolution == sizes[-1]
    assert json.loads((folder / "config.json").read_text())["num_features"] == model.num_features
    model.eval()
    for size in sizes:
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            features = model.backbone(images)
            assert features.shape == (2, model.num_features) and features.isfinite().all()
            assert torch.equal(loaded.backbone(images), features)

    if family in WITHOUT_CHECKPOINTING:
        with pytest.raises(ValueError, match="cannot recompute its activations"):
            check_checkpointing(model.backbone)
    else:
        check_checkpointing(model.backbone)
