"""Which split trains and which one evaluates, under the names that people give them."""

from collections.abc import Iterable

from hf_essl.config import DataArguments

TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("validation", "valid", "val", "dev", "eval", "evaluation", "test", "testing")  # in order of preference


def find_split(names: Iterable[str], splits: Iterable[str]) -> str | None:
    """The first of the names that is a split, in any case; the same case is preferred."""
    splits = list(splits)
    for name in names:
        same = [split for split in splits if split.casefold() == name.casefold()]
        if same:
            return name if name in same else same[0]
    return None


def find_train_split(wanted: str, splits: Iterable[str]) -> str | None:
    """The training split of this name; `train`, the default, may also be named `training`."""
    return find_split(TRAIN_NAMES if wanted == "train" else (wanted,), splits)


def choose_splits(args: DataArguments, splits: list[str]) -> tuple[str, str | None]:
    """The training split and the evaluation split, or None if there is no evaluation split.

    Raises ValueError for a split that the dataset does not have.
    """
    train = find_train_split(args.train_split, splits)
    if train is None:
        raise ValueError(f"train_split is {args.train_split}; the splits of {args.dataset} are {', '.join(splits)}")
    if args.eval_split is None:
        return train, find_split(EVAL_NAMES, [split for split in splits if split != train])
    test = find_split([args.eval_split], splits)
    if test is None:
        raise ValueError(f"eval_split is {args.eval_split}; the splits of {args.dataset} are {', '.join(splits)}")
    return train, test
