"""What a user watches while a run trains."""

import sys

from tqdm.auto import tqdm
from transformers import TrainerCallback


class ProgressBarCallback(TrainerCallback):
    """A bar of the main figures; lines if there is no terminal."""

    FIELDS = (
        ("loss", "loss {:.4f}"),
        ("learning_rate", "lr {:.4f}"),
        ("momentum", "mom {:.3f}"),
        ("resolution", "{:.0f} px"),
        ("magnitude", "mag {:.2f}"),
        ("embedding_std", "std {:.4f}"),
        ("images_per_second", "{:.0f} img/s"),
        ("petaflops", "{:.3g} pF"),
    )

    def __init__(self):
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and not args.disable_tqdm:
            no_terminal, done = not sys.stderr.isatty(), state.global_step
            self.bar = tqdm(total=state.max_steps, initial=done, dynamic_ncols=True, disable=no_terminal)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n if not self.bar.disable else 0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None:
            return
        where = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            text = "  ".join(form.format(logs[key]) for key, form in self.FIELDS if logs.get(key) is not None)
            if self.bar.disable:
                print(f"{where}  {text}", file=sys.stderr, flush=True)
            else:
                self.bar.set_postfix_str(text)
        elif any(key.startswith("eval_") for key in logs):
            self.bar.write(f"{where}  {describe_evaluation(logs)}", file=sys.stderr)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def describe_evaluation(metrics: dict) -> str:
    """An evaluation in one line, such as `kNN 84.1 %  feature std 0.0208  RankMe 61.3`."""
    fields = (
        ("knn_accuracy", "kNN {:.1f} %"),
        ("probe_accuracy", "probe {:.1f} %"),
        ("feature_std", "feature std {:.4f}"),
        ("rankme", "RankMe {:.1f}"),
    )
    values = {key.split("_", 1)[-1]: value for key, value in metrics.items()}
    return "  ".join(form.format(values[key]) for key, form in fields if key in values)
