"""Energy and emissions: counted by codecarbon through transformers' callback, and continued after an interruption."""

import socket

import pytest

from hf_essl.training.energy import EnergyCallback
from tests.helpers import small_trainer
from tests.test_trainer import StopAfter


def energies(trainer):
    return [(e["energy_kwh"], e["co2e_kg"]) for e in trainer.state.log_history if "energy_kwh" in e]


@pytest.mark.slow
def test_a_run_measures_its_energy_and_a_resumed_one_continues(tmp_path, monkeypatch):
    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", unreachable)  # codecarbon asks where it is, and does without
    cut = small_trainer(tmp_path, report_to="codecarbon", callbacks=[StopAfter(6)])
    cut.train()
    resumed = small_trainer(tmp_path, report_to="codecarbon")
    resumed.train(resume_from_checkpoint=True)
    kwh, kg = zip(*energies(resumed), strict=True)
    assert len(kwh) == 12 and list(kwh) == sorted(kwh) and kwh[0] >= 0
    assert kwh[6] >= energies(cut)[-1][0] > 0
    hours = resumed.clock.seconds / 3600
    assert 0.001 < kwh[-1] / hours < 5  # kilowatts of a machine
    assert 0.001 < kg[-1] / kwh[-1] < 1.5  # kgCO2e per kWh of any grid


def test_without_codecarbon_nothing_is_measured(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert energies(trainer) == []
    assert not any(isinstance(callback, EnergyCallback) for callback in trainer.callback_handler.callbacks)
