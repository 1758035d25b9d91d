"""Energy and emissions of a run: transformers' CodeCarbonCallback, read for the log, the report and the card."""

from typing import Any

from transformers.integrations import CodeCarbonCallback

from hf_essl.compat import measured_energy


class EnergyCallback(CodeCarbonCallback):
    """codecarbon's tracker, as `report_to: codecarbon` starts it; a resumed run continues from its checkpoint.

    codecarbon reads the sensors of GPUs and processors, and estimates what it cannot read; one process per machine
    measures. Its own settings come from its environment variables and configuration file.
    """

    _is_running = False

    def __init__(self, run: Any, replaced: CodeCarbonCallback):  # transformers' callback, whose tracker it takes over
        super().__init__()
        self.run, self.tracker = run, replaced.tracker
        self._before = self._counted = (0.0, 0.0)

    def read(self) -> tuple[float, float]:
        """kWh and kgCO2e so far, of this process's machine if it is the one that measures, else 0."""
        if self._is_running:
            self._counted = measured_energy(self.tracker)
        return self._before[0] + self._counted[0], self._before[1] + self._counted[1]

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._before = self._counted = (0.0, 0.0)
        counted = self.run.run_state.energy
        if counted and state.is_world_process_zero:  # the sum over the machines
            self._before = counted["energy_kwh"], counted["co2e_kg"]
        super().on_train_begin(args, state, control, model, **kwargs)
        self._is_running = self.tracker is not None

    def on_train_end(self, args, state, control, **kwargs):
        self.read()
        self._is_running = False
        super().on_train_end(args, state, control, **kwargs)
