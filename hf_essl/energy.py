"""Energy and emissions of a run by codecarbon, an optional extra: `pip install "hf-essl[energy]"`."""

from __future__ import annotations

import difflib
import logging
from typing import Any

from transformers import TrainerCallback

INSTALL = 'pip install "hf-essl[energy]"'


class EnergyCallback(TrainerCallback):
    """Measures the machine while the trainer trains, evaluates and saves; a resumed run goes on from its log.

    codecarbon reads the sensors of GPUs and processors, and estimates from their kind what it cannot read; memory is
    always an estimate. One process of each machine measures.

    Args:
        country: ISO code of the country whose electricity is used, three letters, such as FRA.

    Raises:
        ValueError: where codecarbon is not installed, or does not know the country.
    """

    def __init__(self, country: str):
        check_country(country)
        self.country = country
        self._tracker: Any = None
        self._before = (0.0, 0.0)
        self._since_start = (0.0, 0.0)

    def read(self) -> tuple[float, float]:
        """kWh and kgCO2e so far, of this process's machine where it is the one that measures, else 0."""
        if self._tracker is not None:
            self._tracker.flush()
        return self._before[0] + self._since_start[0], self._before[1] + self._since_start[1]

    def on_train_begin(self, args, state, control, **kwargs):
        counted = [entry for entry in state.log_history if "energy_kwh" in entry]
        self._before, self._since_start = (0.0, 0.0), (0.0, 0.0)
        if counted and state.is_world_process_zero:  # what was logged is the sum over machines
            self._before = counted[-1]["energy_kwh"], counted[-1]["co2e_kg"]
        if state.is_local_process_zero:
            self._tracker = _start(self.country, self._receive)

    def on_train_end(self, args, state, control, **kwargs):
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None

    def _receive(self, total) -> None:
        self._since_start = total.energy_consumed, total.emissions


def check_country(country: str) -> None:
    """Raises ValueError where codecarbon is not installed, or does not know the country."""
    try:
        from codecarbon.input import DataSource
    except ImportError as error:
        raise ValueError(f"energy_country is {country}, but codecarbon is not installed: {INSTALL}") from error
    known = DataSource().get_global_energy_mix_data()
    if country not in known:
        near = difflib.get_close_matches(country.upper(), known, n=3) or ["FRA", "DEU", "USA"]
        raise ValueError(f"energy_country is {country!r}, not one of codecarbon's; ISO codes are such as {near}")


def _start(country: str, receive) -> Any:
    """A running tracker that writes no file, asks no network and hands its totals over."""
    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output import BaseOutput

    class HandOver(BaseOutput):
        def out(self, total, delta):
            receive(total)

    tracker = OfflineEmissionsTracker(
        country_iso_code=country,
        save_to_file=False,
        output_handlers=[HandOver()],
        log_level="error",
        allow_multiple_runs=True,
    )
    tracker.start()
    return tracker
