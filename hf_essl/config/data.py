"""Where the images come from and how they are kept."""

from dataclasses import dataclass
from typing import Literal

from hf_essl.config.fields import Count, Positive, Share, check_fields, on_resume, option


@dataclass
class DataArguments:
    """Where the images come from and how they are kept."""

    resume_rules = on_resume(
        fixed="dataset dataset_config train_split eval_split eval_holdout image_column label_column streaming "
        "image_size white_level max_train_samples max_eval_samples",
        free="cache cache_dir max_unreadable",
    )

    dataset: str = option(
        "photo-patches (embedded, no download), a Hub id, a folder of images or of parquet files, or a parquet file.",
        "photo-patches",
    )
    dataset_config: str | None = option("Configuration (subset) name of a Hub dataset.")
    train_split: str = option("Split to train on.", "train")
    eval_split: str | None = option(
        "Split to evaluate on; by default the first of validation, valid, val, dev, eval, test that exists."
    )
    eval_holdout: Share = option("Share of the training split to hold out if there is no evaluation split.", 0.0)
    image_column: str = option("Column that holds the images.", "image")
    label_column: str = option(
        "Column of class labels, used for evaluation only; may be absent.",
        "label",
    )
    streaming: bool = option("Stream the training split instead of downloading it; needs max_steps.", False)
    image_size: Count = option(
        "Side S in pixels of the canvas, S x S, that the whole image is squashed to; crops are taken from it.", 400
    )
    cache: Literal["none", "memory", "disk", "device"] = option(
        "Keep decoded images: none (decode every time), memory (of the host), disk or device (of the accelerator).",
        "none",
    )
    cache_dir: str | None = option("Folder for cache: disk; by default that of `datasets`, HF_DATASETS_CACHE.")
    white_level: Positive | None = option(
        "Value of white in images of more than 8 bits, such as 4095; by default 65535, and 1 for floats."
    )
    max_unreadable: Share = option("Share of unreadable images above which the run stops with an error.", 0.01)
    max_train_samples: Count | None = option(
        "Train on N images only: the first N, or N at random in `hf-essl evaluate`."
    )
    max_eval_samples: Count | None = option("Evaluate on N images only, evenly spaced over the split.")

    def check(self) -> None:
        """Raises ValueError for values that cannot work."""
        check_fields(self)
        if self.streaming and self.cache != "none":
            raise ValueError(f"cache is {self.cache} with streaming: true; a stream is not kept, set cache: none")
