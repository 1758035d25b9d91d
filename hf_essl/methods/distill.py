"""Distillation: the student's projected features follow those of a frozen teacher (Hinton et al. 2015, no logits)."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from hf_essl.config.fields import Count, checked
from hf_essl.methods.base import Pair, SSLModel, negative_cosine
from hf_essl.methods.frozen_teacher import FrozenTeacher
from hf_essl.methods.heads import mlp


class Distill(SSLModel):
    """L = 1 - [cos(z1, t1) + cos(z2, t2)] / 2, with t the teacher's features of the same view.

    The teacher sees each view at its own resolution and with its own normalization. It is no part of checkpoints and
    exports, which hold only the hash of its weights. Hard Augment compares the losses of the small views, and so
    needs the teacher's features of them all. A teacher of images sees each image once, before the training, as an
    evaluation does; its features are the targets of all views of the image.

    Args:
        teacher: any backbone: a timm model, hf-hub:, torchvision:, transformers:, or the folder of an exported
            backbone or of a finished run.
        teacher_resolution: in pixels; by default that of the teacher's configuration. `view` leaves each view at the
            size that it has for the student, so that curriculum and selection save as much of the teacher's cost.
        teacher_pretrained: False for a teacher with random weights, the same ones each time.
        teacher_sees: views, or images.
        projector_hidden: hidden size of the projector, whose output has the size of the teacher's features.
    """

    title = "Distillation"
    description = "cosine distance to the features of a frozen teacher (method_args: {teacher: NAME})"
    citation = r"""@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
}"""
    small_args: ClassVar[dict[str, Any]] = {
        "teacher": "test_vit",
        "teacher_resolution": 32,
        "teacher_pretrained": False,
        "projector_hidden": 32,
    }
    network_args = ("teacher",)
    compares_own_key = True
    lowest_rank = 0.25  # the teacher's features decide on the rank; good students have half of the first one
    collapse_hint = "lower learning_rate, or give another teacher in method_args"

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        teacher: str,
        teacher_resolution: Count | Literal["view"] | None = None,
        teacher_pretrained: bool = True,
        teacher_sees: Literal["views", "images"] = "views",
        projector_hidden: Count = 2048,
    ):
        super().__init__(backbone)
        if teacher_sees == "images" and teacher_resolution == "view":
            raise ValueError(
                "teacher_resolution is view, but with teacher_sees: images the teacher sees no views; give it a side "
                "in pixels, or leave it out"
            )
        self.teacher_sees = teacher_sees
        statistics = self.pixel_mean, self.pixel_std
        self.teacher = FrozenTeacher.load(teacher, teacher_pretrained, teacher_resolution, *statistics)
        self.projector = mlp((self.num_features, projector_hidden, self.teacher.num_features))

    @property
    def image_teacher(self) -> FrozenTeacher | None:
        return self.teacher if self.teacher_sees == "images" else None

    def embed(self, view: Tensor) -> Pair:
        return self.projector(self.backbone(view)), self._targets_of(view)  # B x D

    def _targets_of(self, view: Tensor) -> Tensor:
        if self.teacher_sees == "views":
            return self.teacher(view)
        if self.image_targets is None:
            raise RuntimeError("the teacher's features of these images are not known; use `show_images`")
        return self.image_targets

    def local_queries(self, views: Tensor) -> Tensor:
        return self.projector(self.backbone(views))  # the teacher sees the pair only

    def loss(self, queries: Pair, keys: Pair) -> Tensor:
        (z1, z2), (t1, t2) = queries, keys  # B x D
        return 1 + (negative_cosine(z1, t1) + negative_cosine(z2, t2)) / 2  # B

    def loss_components(self, queries: Pair, keys: Pair, losses: Tensor) -> dict[str, Tensor]:
        first = (1 + negative_cosine(queries[0], keys[0]).mean()) / 2
        return {"first_view": first, "second_view": losses.mean() - first}

    def embedding(self, queries: Pair, keys: Pair) -> Tensor:
        """The student's distance from the teacher's mean: features after a ReLU all lie in a narrow cone."""
        z, t = F.normalize(queries[0].float(), dim=-1), F.normalize(keys[0].float(), dim=-1)
        return z - t.mean(dim=0)
