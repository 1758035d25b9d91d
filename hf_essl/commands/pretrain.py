"""`hf-essl pretrain RECIPE`: trains a backbone without labels."""

from __future__ import annotations


def run(argv: list[str]) -> None:
    """Loads the recipe with its overrides and trains it."""
    from hf_essl.pretrain import pretrain
    from hf_essl.recipe import load_recipe

    pretrain(load_recipe(argv[0], argv[1:]))
