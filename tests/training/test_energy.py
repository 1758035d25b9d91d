"""Energy and emissions: counted, summed over an interruption, and off the network."""

import builtins
import socket

import pytest

from hf_essl.config import SSLTrainingArguments
from tests.helpers import small_trainer
from tests.test_trainer import StopAfter


def energies(trainer):
    return [(e["energy_kwh"], e["co2e_kg"]) for e in trainer.state.log_history if "energy_kwh" in e]


def test_a_run_measures_its_energy_and_a_resumed_one_goes_on(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    cut = small_trainer(tmp_path, energy_country="FRA", callbacks=[StopAfter(6)])
    cut.train()
    resumed = small_trainer(tmp_path, energy_country="FRA")
    resumed.train(resume_from_checkpoint=True)
    kwh, kg = zip(*energies(resumed), strict=True)
    assert len(kwh) == 12 and list(kwh) == sorted(kwh) and kwh[0] >= 0
    assert kwh[6] >= energies(cut)[-1][0] > 0
    end = resumed.energy_so_far()
    assert end["energy_kwh"] >= kwh[-1] and end["co2e_kg"] >= kg[-1]
    hours = resumed.clock.seconds / 3600
    assert 0.001 < end["energy_kwh"] / hours < 5  # kilowatts of a machine
    assert 0.01 < end["co2e_kg"] / end["energy_kwh"] < 0.2  # France's grid
    assert not list(tmp_path.rglob("emissions*.csv"))


def test_without_a_country_nothing_is_measured(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert energies(trainer) == [] and trainer.energy_so_far() == {}


def test_an_unknown_country_is_one_line():
    with pytest.raises(ValueError, match=r"energy_country is 'FRANCE', not one of codecarbon's.*'FRA'"):
        SSLTrainingArguments(energy_country="FRANCE", use_cpu=True).check()


def test_a_missing_codecarbon_names_the_extra(monkeypatch):
    find = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("codecarbon"):
            raise ImportError(name)
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'codecarbon is not installed: pip install "hf-essl\[energy\]"'):
        SSLTrainingArguments(energy_country="FRA", use_cpu=True).check()
