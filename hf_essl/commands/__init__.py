"""The commands of `hf-essl`: each parses its options and calls one library function."""

COMMANDS = {
    "pretrain": ("hf_essl.commands.pretrain", "pretrain a backbone from a recipe, or from images alone"),
    "recipes": ("hf_essl.commands.recipes", "list the recipes that come with the package"),
    "compare": ("hf_essl.commands.compare", "plot accuracy against cost of finished runs"),
    "sweep": ("hf_essl.commands.sweep", "run the cells of a table and print it"),
    "lr-find": ("hf_essl.commands.lr_find", "find a peak learning rate with a range test"),
    "cost": ("hf_essl.commands.cost", "cost and speed-up of recipes, without training"),
    "benchmark": ("hf_essl.commands.benchmark", "images/s of each part of a training step"),
    "evaluate": ("hf_essl.commands.evaluate", "evaluate a backbone by kNN, linear probe or fine-tuning"),
    "embed": ("hf_essl.commands.embed", "write the features of all images into a parquet file"),
    "neighbors": ("hf_essl.commands.neighbors", "show the nearest neighbors of some images"),
    "export": ("hf_essl.commands.export", "write the backbone as safetensors, torch.export or ONNX"),
    "preview": ("hf_essl.commands.preview", "plot a recipe's schedules"),
    "push": ("hf_essl.commands.push", "push the backbone of a finished run to the Hub"),
    "card": ("hf_essl.commands.card", "write the model card of a finished run"),
    "completion": ("hf_essl.commands.completion", "print a completion script for bash, zsh or fish"),
}
"""By name: the module, whose `run` takes the words of the command, and a summary."""
