"""Settings of a training run in a YAML file: `train --config run.yaml`, where flags win, and `--write-config`.

Run: softlabel train DATA t.h5 -o RUN --write-config run.yaml
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from data.errors import yaml_fault
from pipeline.errors import OutputExists, SettingError, did_you_mean
from pipeline.outputs import check_output_file
from pipeline.training.config import FLAGS, TrainConfig

_FLOATS = {field.name for field in fields(TrainConfig) if str(field.type).startswith("float")}
_CALLED_OTHERWISE = {flag[2:].replace("-", "_"): name for name, flag in FLAGS.items()} | {"no_teacher": "teacher"}
"""Flag -> setting, where the names differ."""
_OF_THE_RUN = {"cache"}
"""What a run's `config.json` says beside its settings; the command line says that anew."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file, or of a run's config.json, by their names in TrainConfig.

    SettingError lists all that it does not know.
    """
    advice = "`softlabel train ... --write-config FILE` writes one with every setting"
    try:
        found: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"--config {path}: {error.strerror}; {advice}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not YAML{yaml_fault(error)}; {advice}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SettingError(f"{path} holds no settings, expected lines such as `temperature: 4.0`; {advice}")
    known = [field.name for field in fields(TrainConfig)]
    settings = {key: value for key, value in found.items() if key not in _OF_THE_RUN}
    unknown = [f"unknown key '{key}'{_meant(str(key), known)}" for key in settings if key not in known]
    if unknown:
        raise SettingError(f"{path}: {'; '.join(unknown)}")
    return {key: _number(value) if key in _FLOATS else value for key, value in settings.items()}


def _meant(key: str, known: list[str]) -> str:
    """A flag's name for a setting that is called otherwise here, or the nearest name."""
    name = _CALLED_OTHERWISE.get(key.lstrip("-").replace("-", "_"))
    return f"; did you mean '{name}'?" if name else did_you_mean(key, known)


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3, without a dot, for text: such text is the number that it spells."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def write_config(path: str | Path, config: TrainConfig) -> None:
    """Every setting with its value, as `--config` takes it; OutputExists where there is such a file."""
    from cache import durable

    check_output_file(path)
    text = "# The settings of `softlabel train`; what they mean: softlabel train --help\n"
    text += yaml.safe_dump(asdict(config), sort_keys=False)
    with durable.unpublished(Path(path), text.encode()) as temp:
        if not durable.publish_new(temp, Path(path)):
            raise OutputExists(f"{path} exists: choose another name, or delete it")
