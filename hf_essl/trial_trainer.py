"""`model_init` and `hyperparameter_search`: model, schedule and curriculum are built for each trial."""

import importlib.util
from collections.abc import Callable
from typing import Any

from transformers import set_seed
from transformers.trainer_utils import BestRun

from hf_essl.config import DataArguments
from hf_essl.cost import FlopCounter
from hf_essl.evaluation.during_training import OnlineProbe
from hf_essl.hub.trainer import HubTrainer
from hf_essl.methods import SSLModel
from hf_essl.recipe import check_groups
from hf_essl.training.layout import check_network, prepare_layers

RANGE = 3.0  # the default search space: the learning rate, divided by this to times this


class TrialTrainer(HubTrainer):
    """A trainer that builds a new model for each training, if it has a `model_init`."""

    data_args: DataArguments
    flop_counter: FlopCounter
    alarm: Any
    model_init: Any  # None, or a function of a trial, or of nothing
    _built: SSLModel | None = None  # by `begin_trial`, for the training that follows

    def hyperparameter_search(  # type: ignore[override]  # other defaults
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str = "maximize",
        backend: str = "optuna",
        hp_name: Callable[[Any], str] | None = None,
        **kwargs,
    ) -> BestRun:
        """Trains trials with other settings, by Optuna, and returns the best one; the trainer needs a `model_init`.

        Each trial has its own folder `run-N` in the output folder.

        Args:
            hp_space: fields of SSLTrainingArguments from an Optuna trial; by default the learning rate, up to 3 times
                smaller or larger.
            compute_objective: from the metrics of an evaluation; by default the kNN accuracy in percent, or view
                retrieval without labels.
            kwargs: of `optuna.create_study`, such as `sampler`.

        Raises ValueError without a `model_init` or without Optuna.
        """
        if self.model_init is None:
            raise ValueError(
                "the trainer has no model_init; pass SSLTrainer(model_init=…, args=…), a function of a model"
            )
        if backend != "optuna" or importlib.util.find_spec("optuna") is None:
            raise ValueError(f"backend is {backend!r}; only optuna is supported: pip install optuna")
        found = super().hyperparameter_search(
            hp_space or self._around_learning_rate,
            compute_objective or objective,
            n_trials,
            direction,
            backend,
            hp_name,
            **kwargs,
        )
        assert isinstance(found, BestRun), "one objective"
        return found

    def call_model_init(self, trial=None) -> SSLModel:  # type: ignore[override]
        """A new model, which all parts of the trainer then use; the one of `begin_trial`, if it waits."""
        model: Any = self._built
        if model is not None:
            self._built = None
            return model
        model = super().call_model_init(trial)
        check_network(model, self.views.args, self.args)
        prepare_layers(model, self.args)
        self.flop_counter = FlopCounter.of(model, self.views.args)
        self.alarm.model = model
        if self.online_probe is not None:
            self.online_probe = OnlineProbe.for_model(model, self.train_dataset, self.args.device)
        return model

    def _hp_search_setup(self, trial) -> None:  # of transformers
        super()._hp_search_setup(trial)
        if trial is not None:
            self.set_curriculum(check_groups(None, self.data_args, self.views.args, self.args))

    def begin_trial(self, trial) -> None:
        """Before a training: its settings and its model; without a `model_init`, nothing changes."""
        if self.model_init is not None:
            self._hp_search_setup(trial)
            set_seed(self.args.seed)  # as transformers does before it asks for the model
            self._built = self.model = self.model_wrapped = self.call_model_init(trial)
            if self.place_model_on_device:  # transformers moves it later, and we use it before
                self._move_model_to_device(self.model, self.args.device)

    def set_curriculum(self, curriculum) -> None:
        """Makes all parts of the trainer follow another curriculum."""
        self.curriculum = curriculum
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "curriculum"):
                callback.curriculum = curriculum

    def _around_learning_rate(self, trial) -> dict[str, Any]:
        rate = self.args.learning_rate
        return {"learning_rate": trial.suggest_float("learning_rate", rate / RANGE, rate * RANGE, log=True)}


def objective(metrics: dict[str, float]) -> float:
    """The kNN accuracy of an evaluation, or its view retrieval without labels; both in percent."""
    return metrics.get("eval_knn_accuracy", metrics["eval_retrieval"])


def init_model(model: Any, model_init: Callable[..., Any] | None) -> Any:
    """The model of a new trainer. Raises ValueError unless exactly one of the two is given."""
    if (model is None) == (model_init is None):
        raise ValueError("pass either model or model_init to SSLTrainer, and not both")
    return model if model_init is None else model_init()
