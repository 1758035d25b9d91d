"""A backbone pushed to a Hub on this machine, downloaded into an empty cache and loaded; and whatever may go wrong."""

import base64
import getpass
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load
from transformers import AutoImageProcessor, AutoModel, ResNetConfig, TimmBackbone, pipeline
from transformers.initialization import no_init_weights

from hf_essl import cli, export_backbone, load_backbone, push_backbone
from hf_essl.config.redact import without_paths
from hf_essl.hub.hub_errors import HubError, HubUnreachable, explain
from hf_essl.methods import METHODS, SSLModel
from tests.evaluation.test_backbone import write_checkpoint

CARD = "---\nlibrary_name: timm\n---\n# A backbone\n"
ABSOLUTE = re.compile(rb"(?<![\w.:/])/(?:home|root|tmp|Users|var|opt|usr|work|mnt|data|runs)/[\w.-]")
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # pickle protocols, torch's zip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished BYOL run as `hf-essl pretrain` leaves it, by hand: two checkpoints, recipe, backbone and card."""
    folder = tmp_path_factory.mktemp("runs") / "byol"
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", "byol", method_args=METHODS["byol"].small_args)
    model.train()(torch.randn(8, 3, 48, 48), torch.randn(8, 3, 48, 48))  # BatchNorm statistics of its own
    for step in (9, 10):
        write_checkpoint(model, folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}" / "training_args.bin").write_bytes(b"\x80\x02a pickle that nothing may push")
    recipe = {
        "backbone": "test_resnet",
        "method": "byol",
        "resolution": 48,
        "dataset": str(folder / "images"),
        "output_dir": str(folder),
        "resume_from_checkpoint": "~/runs/byol/checkpoint-9",
        "hub_model_id": "ada/net",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "metrics.json").write_text('{"method": "byol"}')  # the run is finished
    backbone = export_backbone(model.eval(), folder / "backbone", input_size=48)
    (backbone / "README.md").write_text(CARD)
    Image.new("RGB", (8, 8), "red").save(backbone / "curves.png")
    (backbone / "training_args.bin").write_bytes(b"\x80\x02a pickle that nothing may push")
    (backbone / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def photograph():
    return Image.fromarray(torch.randint(256, (48, 48, 3), generator=torch.manual_seed(1), dtype=torch.uint8).numpy())


def stored(hub, name="ada/net", revision="main"):
    return {path: blob.content for path, blob in hub.repositories[name].files(revision).items()}


def check_nothing_leaked(hub):
    """Whatever the server has received, file by file and request by request, what is in base64 read out."""
    contents = [part for request in hub.received for part in unpacked(request.body)] + [
        blob.content
        for repository in hub.repositories.values()
        for commits in repository.branches.values()
        for commit in commits
        for blob in commit.files.values()
    ]
    assert sum(map(len, contents)) > 100_000
    user = re.compile(rb"\b%b\b" % re.escape(getpass.getuser().encode()))
    for content in contents:
        assert hub.token.encode() not in content and hub.reader.encode() not in content
        assert not content.startswith(PICKLES)
        assert not ABSOLUTE.search(content), ABSOLUTE.search(content)
        assert str(Path.home()).encode() + b"/" not in content
        assert not (is_text(content) and user.search(content)), user.search(content)
    names = [name for repository in hub.repositories.values() for name in repository.files()]
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md", ".png", ".yaml"}


def unpacked(body):
    """A request's body, and the decoded base64 in a commit or a preupload."""
    yield body
    if is_text(body):
        for packed in re.findall(rb'"(?:content|sample)": ?"([A-Za-z0-9+/=]+)"', body):
            yield base64.b64decode(packed)


def is_text(content):
    try:
        return bool(content.decode())
    except UnicodeDecodeError:
        return False


def test_a_push_is_one_commit_of_only_the_backbone(hub, run):
    url = push_backbone(run, "ada/net", commit_message="First")
    assert url == f"{hub.url}/ada/net"
    assert sorted(stored(hub)) == ["README.md", "config.json", "curves.png", "model.safetensors"]
    for name, content in stored(hub).items():
        assert content == (run / "backbone" / name).read_bytes()
    assert [commit.message for commit in hub.repositories["ada/net"].branches["main"]] == ["initial", "First"]
    assert not hub.repositories["ada/net"].private
    check_nothing_leaked(hub)


def test_what_is_downloaded_gives_the_same_features_everywhere(hub, run, photograph, monkeypatch):
    model = timm.create_model("test_resnet", num_classes=0).eval()
    model.load_state_dict(load((run / "backbone" / "model.safetensors").read_bytes()))
    push_backbone(run / "backbone", "ada/net")
    assert not Path(constants.HF_HUB_CACHE).exists()

    own = load_backbone("ada/net")
    pixels = own.preprocess([photograph])
    processed = AutoImageProcessor.from_pretrained("ada/net")(photograph)["pixel_values"]
    torch.testing.assert_close(processed, pixels, rtol=0, atol=1e-6)
    through_timm = timm.create_model("hf-hub:ada/net", pretrained=True).eval()
    through_transformers = AutoModel.from_pretrained("ada/net").eval()
    with no_init_weights():  # else transformers resets the statistics of BatchNorm after timm has loaded them
        maps = TimmBackbone.from_pretrained("hf-hub:ada/net", out_indices=(-1,)).eval()
    features = pipeline("image-feature-extraction", model="ada/net", device="cpu", pool=True)(photograph)
    with torch.no_grad():
        expected = model(pixels)
        found = {
            "load_backbone": own.backbone(pixels),
            "timm": through_timm(pixels),
            "AutoModel": through_transformers(pixel_values=pixels).pooler_output,
            "TimmBackbone": maps(pixels).feature_maps[-1].mean(dim=(2, 3)),
            "pipeline": torch.tensor(features),
        }
    assert expected.std() > 1e-3
    for name, value in found.items():
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert list(Path(constants.HF_HUB_CACHE).glob("models--ada--net/snapshots/*/model.safetensors"))


def test_a_transformers_backbone_comes_with_its_processor(hub, tmp_path, photograph):
    ResNetConfig(embedding_size=16, hidden_sizes=[16, 48], depths=[1, 1], layer_type="basic").save_pretrained(tmp_path)
    model = SSLModel.from_timm(f"transformers:{tmp_path}", resolutions=(32,)).eval()
    push_backbone(export_backbone(model, tmp_path / "backbone", input_size=32), "ada/net")
    assert sorted(stored(hub)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    check_nothing_leaked(hub)
    pixels = AutoImageProcessor.from_pretrained("ada/net")(photograph, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = AutoModel.from_pretrained("ada/net").eval()(pixel_values=pixels).pooler_output.flatten(1)
        own = load_backbone("ada/net")
        torch.testing.assert_close(features, model.backbone(pixels), rtol=0, atol=1e-6)
        torch.testing.assert_close(features, own.backbone(pixels), rtol=0, atol=1e-6)


def test_the_full_state_comes_as_safetensors_and_a_recipe_without_paths(hub, run, tmp_path):
    push_backbone(run, "ada/net", full_state=True)
    assert {name for name in stored(hub) if "/" in name} == {"ssl/model.safetensors", "ssl/recipe.yaml"}
    state = load(stored(hub)["ssl/model.safetensors"])
    assert {name.split(".")[0] for name in state} == {"backbone", "projector", "predictor", "teacher"}
    recipe = yaml.safe_load(stored(hub)["ssl/recipe.yaml"])
    assert recipe["dataset"] == "images" and recipe["output_dir"] == "byol"
    assert recipe["resume_from_checkpoint"] == "checkpoint-9" and recipe["hub_model_id"] == "ada/net"
    check_nothing_leaked(hub)
    for name in ("model.safetensors", "recipe.yaml"):
        (tmp_path / name).write_bytes(stored(hub)[f"ssl/{name}"])
    teacher = load_backbone(tmp_path, which="teacher")  # by the recipe next to it
    assert torch.equal(teacher.backbone.conv1[0].weight, state["teacher.backbone.conv1.0.weight"])


def test_private_revision_and_message_by_the_command(hub, run, capsys):
    words = ["push", str(run), "--repo_id", "ada/net", "--private", "--revision", "v2", "--message", "Second"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"pushed to {hub.url}/ada/net/tree/v2\n"
    repository = hub.repositories["ada/net"]
    assert repository.private and repository.commit("v2").message == "Second"
    assert "model.safetensors" in repository.files("v2") and not repository.files("main")


def test_a_bare_name_is_the_users_own(hub, run):
    assert push_backbone(run, "net") == f"{hub.url}/ada/net"
    assert "config.json" in stored(hub)


def test_private_is_not_promised_for_a_public_repository(hub, run):
    push_backbone(run, "ada/net")
    with pytest.raises(HubError, match="ada/net already exists and is public; make it private in its settings"):
        push_backbone(run, "ada/net", private=True)


@pytest.mark.parametrize("where", [r"PUT /lfs/", r"POST .*/commit/"])
def test_cut_off_half_way_and_repeated_it_ends_whole(hub, run, where):
    hub.cut(where)
    with pytest.raises(
        HubUnreachable,
        match=r"cannot be reached .*the backbone is safe in .*backbone, push it later with `hf-essl push",
    ):
        push_backbone(run, "ada/net", full_state=True)
    assert not stored(hub)
    assert hub.requests(where)
    hub.mend()
    sent = len(hub.requests("PUT /lfs/"))
    push_backbone(run, "ada/net", full_state=True)
    assert len(stored(hub)) == 6
    for name in ("config.json", "model.safetensors", "README.md"):
        assert stored(hub)[name] == (run / "backbone" / name).read_bytes()
    assert stored(hub)["ssl/model.safetensors"] == (run / "checkpoint-10" / "model.safetensors").read_bytes()
    if "commit" in where:
        assert len(hub.requests("PUT /lfs/")) == sent, "what the Hub had already was sent again"


def test_one_lost_connection_is_retried_in_silence(hub, run):
    hub.cut(r"PUT /lfs/", times=1)
    push_backbone(run, "ada/net")
    assert stored(hub)["model.safetensors"] == (run / "backbone" / "model.safetensors").read_bytes()


def test_repeated_without_a_change_it_makes_no_commit(hub, run):
    push_backbone(run, "ada/net")
    push_backbone(run, "ada/net")
    assert len(hub.repositories["ada/net"].branches["main"]) == 2


@pytest.mark.parametrize("where", [r"POST /api/repos/create", r"POST .*validate-yaml", r"POST .*/commit/"])
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (
            401,
            HubError,
            r"does not accept the token for ada/net \(401, out of order\); run `hf auth login`, or",
        ),
        (403, HubError, r"does not let this token write to ada/net \(403, .*\); use a token with write access"),
        (
            503,
            HubUnreachable,
            r"(does not accept ada/net now \(503.*\)|the answer of the Hub at .* is unreadable); try again later",
        ),
    ],
)
def test_an_answer_is_one_sentence_with_what_to_do(hub, run, capsys, where, status, kind, message):
    hub.fail(where, status)
    with pytest.raises(HubError, match=message) as caught:
        push_backbone(run, "ada/net", private=True)
    assert type(caught.value) is kind
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ["push", str(run), "--repo_id", "ada/net", "--message", "once more", "--private", "--full_state"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-essl: error: ") and re.search(message, error)
    again = f"hf-essl push {run} --repo_id ada/net --message 'once more' --private --full_state"
    assert error.endswith(f"; the backbone is safe in {run / 'backbone'}, push it later with `{again}`")
    assert hub.token not in error
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_tokens_without_write_access_are_reported_before_anything_is_sent(hub, run, monkeypatch):
    with pytest.raises(HubError, match=r"write to eve/net \(403, You don't have the rights"):
        push_backbone(run, "eve/net")
    push_backbone(run, "ada/net")
    sent = len(hub.requests("PUT|POST .*commit"))
    monkeypatch.setenv("HF_TOKEN", hub.reader)
    with pytest.raises(HubError, match=r"does not let this token write to ada/net"):
        push_backbone(run, "ada/net")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(HubError, match=r"does not accept the token for ada/net \(401"):
        push_backbone(run, "ada/net")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no token for ada/net on the Hub; run `hf auth login`"):
        push_backbone(run, "ada/net")
    assert len(hub.requests("PUT|POST .*commit")) == sent


def test_no_hub_and_no_network(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HubUnreachable, match="HF_HUB_OFFLINE is set, so ada/net cannot be pushed to the Hub; unset it"
    ):
        push_backbone(run, "ada/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match=r"the Hub at http://127.0.0.1:9 cannot be reached \(.*refused"):
        push_backbone(run, "ada/net")


def test_an_impossible_name(hub, run):
    with pytest.raises(HubError, match="repo_id is 'a b/c'; use user/name with letters, digits"):
        push_backbone(run, "a b/c")


def test_where_there_is_nothing_to_push(hub, run, tmp_path):
    with pytest.raises(ValueError, match=r"does not contain an exported backbone; pass the folder of a finished run"):
        push_backbone(run / "checkpoint-9", "ada/net")
    backbone = export_backbone(timm.create_model("test_resnet", num_classes=0), tmp_path / "backbone", input_size=32)
    with pytest.raises(ValueError, match=r"full_state is set, but .* has no complete checkpoint; drop full_state"):
        push_backbone(backbone, "ada/net", full_state=True)
    assert not hub.received


@pytest.mark.parametrize("leak", ["{token}", "made in {folder}/images"])
def test_a_card_with_a_token_or_a_path_is_not_pushed(hub, tmp_path, leak):
    backbone = export_backbone(timm.create_model("test_resnet", num_classes=0), tmp_path / "backbone", input_size=32)
    (backbone / "README.md").write_text(CARD + leak.format(token=hub.token, folder=tmp_path))
    message = r"README.md contains (the Hub token|.* a folder of this machine); remove it"
    with pytest.raises(ValueError, match=message) as caught:
        push_backbone(tmp_path, "ada/net")
    assert hub.token not in str(caught.value) and not hub.received


def test_values_that_name_folders_keep_only_their_last_component():
    given = {
        "dataset": "/data/ada/birds/",
        "output_dir": "../../ada/runs/one",
        "resume_from_checkpoint": r"C:\Users\ada\checkpoint-3",
        "fsdp_config": {"file": "~/fsdp.json"},
        "crop_scale": [0.2, 1.0],
        "hub_model_id": "ada/net",
        "backbone": "test_resnet",
    }
    assert without_paths(given) == {
        "dataset": "birds",
        "output_dir": "one",
        "resume_from_checkpoint": "checkpoint-3",
        "fsdp_config": {"file": "fsdp.json"},
        "crop_scale": [0.2, 1.0],
        "hub_model_id": "ada/net",
        "backbone": "test_resnet",
    }


def test_an_error_of_another_kind_keeps_its_own_words():
    assert str(explain(ValueError("Invalid metadata in README.md.\n- a key"), "ada/net")) == (
        "ada/net was not pushed: Invalid metadata in README.md. - a key"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see /srv/data/x.txt now", "see x.txt now"),
        ("{a: /srv/x/y, b: ~/me/z}", "{a: y, b: z}"),
        ("path:/home/me/z", "path:z"),
        ("see file:///home/me/z", "see z"),
        (r"in C:\Users\me\x", "in x"),
        ("local-dir:/a/b/c", "local-dir:c"),
        ("https://host/a/b s3://bucket/c/d hf-hub:user/name", "https://host/a/b s3://bucket/c/d hf-hub:user/name"),
        ("runs/a/b and/or 3 / 4", "runs/a/b and/or 3 / 4"),
    ],
)
def test_paths_inside_a_text_are_cut_too(text, shown):
    assert without_paths({"run_name": [text]}) == {"run_name": [shown]}
