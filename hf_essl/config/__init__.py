"""The fields of a recipe in four groups, with their ranges; recipe files and command-line overrides."""

from hf_essl.config.data import DataArguments
from hf_essl.config.model import ModelArguments
from hf_essl.config.training import SSLTrainingArguments, cpu_has_bf16
from hf_essl.config.views import ViewArguments
