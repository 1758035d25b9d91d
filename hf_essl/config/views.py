"""The augmentation chain, its curriculum (Super Progressive Learning, Sec. 3.2) and Hard Augment (Sec. 3.3)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from hf_essl.config.fields import (
    Count,
    NonNegative,
    NonNegativeInt,
    Part,
    PerView,
    Positive,
    Probability,
    check_fields,
    on_resume,
    option,
)

Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]
STANDARD_MAGNITUDE = 5.0  # the color jitter has the ranges of `ViewArguments.jitter` here (Sec. 4 of the paper)
MAX_RANDAUGMENT = 30.0  # at which each operation of RandAugment reaches the end of its range (m of Table 11)
Scale = Annotated[list[Part], Field(min_length=2, max_length=2)]


@dataclass
class ViewArguments:
    """The augmentation chain, its curriculum (Super Progressive Learning, Sec. 3.2) and Hard Augment (Sec. 3.3)."""

    resume_rules = on_resume(
        acts="min_magnitude max_magnitude selection_render selection_precision selection_score crop_scale crop_ratio "
        "local_scale local_blur_p flip_p jitter jitter_order jitter_p grayscale_p blur_p blur_sigma solarize_p "
        "randaugment_ops",
        fixed="resolution min_resolution resolution_schedule resolution_step num_views selection selection_resolution "
        "augmentation extra_targets local_views local_resolution min_tokens max_tokens token_stages selection_tokens "
        "teacher_tokens",  # the cost of the whole run depends on them
        free="view_executor compile_views",
    )

    resolution: Count = option("Side in pixels of the training views, r_max of the curriculum.", 224)
    min_resolution: Count | None = option("r_min of the curriculum; needed unless resolution_schedule is constant.")
    resolution_schedule: Literal["constant", "progressive", "super_progressive"] = option(
        "constant; progressive: r_min to r_max in equal stages; super_progressive: r_max in the warm-up before them.",
        "constant",
    )
    resolution_step: Count = option("Stages are multiples of this many pixels.", 32)
    min_magnitude: NonNegative = option(
        "Strength at the start: of the color jitter (at 5, its ranges are those of jitter), or of RandAugment "
        "(0 to 30).",
        5.0,
    )
    max_magnitude: NonNegative = option("Strength at the end; linear in between.", 5.0)
    min_tokens: Part = option(
        "Share of a ViT's patch tokens that the student sees at the start; the others are dropped, which saves their "
        "cost. Evaluation and export always use all tokens.",
        1.0,
    )
    max_tokens: Part = option("The same share at the end.", 1.0)
    token_stages: Annotated[int, Field(ge=2)] = option(
        "Stages of equal length and equal steps from min_tokens to max_tokens.", 4
    )
    teacher_tokens: Part = option(
        "Share of the patch tokens that a momentum teacher sees, the same ones of all images of a step.", 1.0
    )

    num_views: Annotated[int, Field(ge=2)] = option("Views per image, m of Hard Augment; the paper uses 6.", 2)
    selection: Literal["none", "hard", "random"] = option(
        "Which two of the views train: none (only two are made), hard (highest loss, Eq. 10) or random.", "none"
    )
    selection_resolution: Count = option("Side in pixels at which the pairs are compared, r_sel.", 64)
    selection_tokens: Part = option("Share of a ViT's patch tokens in the selection pass.", 1.0)
    selection_render: Literal["direct", "downsample"] = option(
        "How small views are made: direct (rendered at r_sel) or downsample (from full size, as in Algorithm 1).",
        "direct",
    )
    selection_precision: Literal["training", "bf16"] = option(
        "Precision of the selection pass: that of training, or bf16 if the device supports it.", "training"
    )
    selection_score: Literal["cosine", "projection_cosine", "loss"] = option(
        "What makes a pair hard: cosine (negative cosine of predictions p and projections z, as in SimSiam's loss), "
        "projection_cosine (of z and z, as Algorithm 1 prints; equal to cosine if predictions are projections) or "
        "loss (the method's own per-image loss). On a trained SimSiam, the first two choose the same pair for 63 % of "
        "the images.",
        "cosine",
    )

    augmentation: Literal["simclr", "randaugment"] = option(
        "What follows crop and flip: simclr (jitter, grayscale, blur, solarize) or randaugment (none of these).",
        "simclr",
    )
    randaugment_ops: Count = option("Random operations per image with randaugment, n.", 2)
    extra_targets: bool = option(
        "Use the small views that were not chosen as targets too (Table 9); with random selection this is multi-crop.",
        False,
    )

    local_views: NonNegativeInt = option(
        "Local views per image beside the pair (multi-crop): small crops that the student alone sees, with the pair's "
        "keys as their targets; DINO uses 6 to 10.",
        0,
    )
    local_resolution: Count = option(
        "Side in pixels of the local views at full resolution; a curriculum scales both, the local views to multiples "
        "of half of resolution_step.",
        96,
    )
    local_scale: Scale = option(
        "Smallest and largest share of the image's area in a local view; by default those of DINO.",
        factory=lambda: [0.05, 0.4],
    )
    local_blur_p: Probability = option("Probability of a Gaussian blur of a local view; none is solarized.", 0.5)

    crop_scale: Scale = option(
        "Smallest and largest share of the image's area in a crop; by default those of SimSiam and MoCo v2. SimCLR's "
        "are 0.08 1.",
        factory=lambda: [0.2, 1.0],
    )
    crop_ratio: Range = option("Smallest and largest width / height of a crop.", factory=lambda: [3 / 4, 4 / 3])
    flip_p: Probability = option("Probability of a horizontal flip.", 0.5)
    jitter: Annotated[list[NonNegative], Field(min_length=4, max_length=4)] = option(
        "Brightness, contrast, saturation and hue ranges at magnitude 5; by default those of SimSiam and MoCo v2. "
        "SimCLR's are 0.8 0.8 0.8 0.2.",
        factory=lambda: [0.4, 0.4, 0.4, 0.1],
    )
    jitter_order: Literal["fixed", "random"] = option(
        "Order of the color jitter's operations: fixed (brightness, contrast, saturation, hue), which is faster, or "
        "random for each view, as in torchvision's ColorJitter and as published for all five methods.",
        "fixed",
    )
    jitter_p: Probability = option("Probability of the color jitter.", 0.8)
    grayscale_p: Probability = option("Probability of a conversion to grayscale.", 0.2)
    blur_p: PerView = option(
        "Probability of a Gaussian blur; two values if the first and second view differ (BYOL, DINO).",
        factory=lambda: [0.5],
    )
    blur_sigma: Range = option(
        "Smallest and largest sigma of the blur, in pixels of a 224 px view and of the local views beside it.",
        factory=lambda: [0.1, 2.0],
    )
    solarize_p: PerView = option(
        "Probability of solarization; two values if the first and second view differ.", factory=lambda: [0.0]
    )
    view_executor: Literal["fused", "kornia"] = option(
        "fused, or kornia (one operation after the other, same pixels; always used for randaugment).", "fused"
    )
    compile_views: bool | None = option(
        "Compile the fused color operations of jitter_order: fixed; on by default on a GPU (on a CPU it takes 20 s, "
        "once)."
    )

    def check(self) -> None:
        """Raises ValueError for values that cannot work."""
        check_fields(self)
        self._check_resolutions()
        self._check_selection()
        self._check_local_views()
        self._check_magnitudes()
        self._check_tokens()
        self._check_compiled()
        for name in ("crop_scale", "local_scale", "crop_ratio", "blur_sigma"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name} is {getattr(self, name)}; the smallest comes first: [{largest}, {smallest}]")

    def _check_magnitudes(self) -> None:
        strongest = max(self.min_magnitude, self.max_magnitude)
        magnitudes = f"magnitudes are {self.min_magnitude} to {self.max_magnitude}"
        if self.augmentation == "randaugment" and strongest > MAX_RANDAUGMENT:
            raise ValueError(f"{magnitudes}; RandAugment's scale is 0 to {MAX_RANDAUGMENT:g}")
        if self.augmentation == "simclr" and self.jitter[3] * strongest / STANDARD_MAGNITUDE > 0.5:
            raise ValueError(
                f"{magnitudes} with hue {self.jitter[3]}; hue x magnitude / {STANDARD_MAGNITUDE:g} must be at most "
                f"0.5: lower max_magnitude or the hue of jitter"
            )

    def _check_tokens(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens:g}, above max_tokens {self.max_tokens:g}; lower it to that"
            )
        if self.selection_tokens < 1 and not self.needs_selection_pass:
            raise ValueError(
                f"selection_tokens is {self.selection_tokens:g} with selection: {self.selection}, which has no "
                f"selection pass; set selection: hard, or leave selection_tokens out"
            )

    @property
    def drops_tokens(self) -> bool:
        """Whether some pass sees fewer patch tokens than there are."""
        return min(self.min_tokens, self.selection_tokens, self.teacher_tokens) < 1

    def _check_compiled(self) -> None:
        needed = {"view_executor": "fused", "augmentation": "simclr", "jitter_order": "fixed"}
        for name, value in needed.items():
            if self.compile_views and getattr(self, name) != value:
                raise ValueError(
                    f"compile_views is true with {name}: {getattr(self, name)}, which is not compiled; set "
                    f"{name}: {value}, or leave compile_views out"
                )

    @property
    def stages(self) -> tuple[int, ...]:
        """Resolutions of the curriculum's stages, `resolution` last."""
        if self.resolution_schedule == "constant" or self.min_resolution is None:
            return (self.resolution,)
        return tuple(range(self.min_resolution, self.resolution + 1, self.resolution_step))

    def local_size(self, resolution: int) -> int:
        """Side in pixels of the local views beside a pair of `resolution`: the same share of `local_resolution`."""
        step = self._local_step
        return max(round(self.local_resolution * resolution / self.resolution / step), 1) * step

    @property
    def _local_step(self) -> int:
        return max(self.resolution_step // 2, 1)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Every resolution that the network sees: stages, local views, selection pass, and `resolution`."""
        small = {self.selection_resolution} if self.needs_selection_pass else set()
        if self.local_views:
            small |= {self.local_size(stage) for stage in (*self.stages, self.resolution)}
        return tuple(sorted({*self.stages, self.resolution} | small))

    @property
    def needs_selection_pass(self) -> bool:
        """Whether all m views are rendered small and embedded, to choose a pair or to give extra targets."""
        return self.selection == "hard" or self.extra_targets

    def _check_resolutions(self) -> None:
        if self.resolution_schedule != "constant" and self.min_resolution is None:
            raise ValueError(
                f"resolution_schedule is {self.resolution_schedule} without min_resolution; set it, such as "
                f"min_resolution: 96, or resolution_schedule: constant"
            )
        for name in ("resolution", "min_resolution"):
            value = getattr(self, name)
            if value is not None and value % self.resolution_step:
                below = max(value // self.resolution_step, 1) * self.resolution_step
                raise ValueError(
                    f"{name} is {value}, not a multiple of resolution_step {self.resolution_step}; use {below} or "
                    f"{below + self.resolution_step}, or set another resolution_step"
                )
        if self.min_resolution is not None and self.min_resolution > self.resolution:
            raise ValueError(
                f"min_resolution is {self.min_resolution}, above resolution {self.resolution}; lower it to that"
            )

    def _check_selection(self) -> None:
        if self.selection == "none" and self.num_views != 2:
            raise ValueError(
                f"num_views is {self.num_views} with selection: none, which uses exactly 2; set selection: hard "
                f"or random, or num_views: 2"
            )
        if self.extra_targets and (self.selection == "none" or self.num_views < 3):
            raise ValueError(
                f"extra_targets is true with selection {self.selection} and num_views {self.num_views}, which leave "
                f"no extra view; set selection: hard or random and num_views: 3 or more"
            )
        if self.needs_selection_pass and self.selection_resolution > self.resolution:
            raise ValueError(
                f"selection_resolution is {self.selection_resolution}, above resolution {self.resolution}; lower it "
                f"(the paper uses 64 for 224)"
            )

    def _check_local_views(self) -> None:
        if not self.local_views:
            return
        if self.extra_targets:
            raise ValueError(
                f"extra_targets is true with local_views: {self.local_views}, which are two forms of multi-crop; set "
                f"extra_targets: false or local_views: 0"
            )
        if self.local_resolution > self.resolution:
            raise ValueError(
                f"local_resolution is {self.local_resolution}, above resolution {self.resolution}; lower it (DINO "
                f"uses 96 for 224)"
            )
        if self.local_size(self.resolution) != self.local_resolution:
            below = max(self.local_resolution // self._local_step, 1) * self._local_step
            raise ValueError(
                f"local_resolution is {self.local_resolution}, not a multiple of half of resolution_step "
                f"{self.resolution_step}; use {below} or {below + self._local_step}, or set another resolution_step"
            )
