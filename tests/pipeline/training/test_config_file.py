"""Settings in a file: what is written is read again, flags win, and what is not known is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.errors import OutputExists, SettingError
from pipeline.train import saved_config
from pipeline.training.config import TrainConfig
from pipeline.training.config_file import read_config, write_config

Cli = Callable[..., tuple[int, str, str]]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = TrainConfig(temperature=2.5, teacher=False, lr_peak=1e-5, class_weights="auto", seed=2**62)
    write_config(tmp_path / "run.yaml", config)
    assert TrainConfig(**read_config(tmp_path / "run.yaml")) == config


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epochs: 3\n")
    with pytest.raises(OutputExists):
        write_config(tmp_path / "run.yaml", TrainConfig())
    assert (tmp_path / "run.yaml").read_text() == "epochs: 3\n"


def test_a_number_may_be_written_as_everybody_does(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lr_peak: 1e-3\ndropout: 2e-1\nepochs: 3\nstudent: 1e3\n")
    assert read_config(tmp_path / "run.yaml") == {"lr_peak": 1e-3, "dropout": 0.2, "epochs": 3, "student": "1e3"}
    (tmp_path / "run.yaml").write_text("lr_peak: fast\n")
    with pytest.raises(SettingError, match="lr_peak must be a number, got 'fast'"):
        TrainConfig(**read_config(tmp_path / "run.yaml"))


def test_a_misspelt_key_fails_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("temprature: 3\nalfa: 0.1\n")
    with pytest.raises(SettingError) as caught:
        read_config(tmp_path / "run.yaml")
    assert "unknown key 'temprature'; did you mean 'temperature'?" in str(caught.value)
    assert "unknown key 'alfa'; did you mean 'alpha'?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("- 1\n", "holds no settings"), ("a: [\n", "is not YAML"), ("\x00", "is not YAML")]
)
def test_a_file_that_holds_no_settings_says_where_to_get_one(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SettingError, match=rf"{said}.*--write-config FILE"):
        read_config(tmp_path / "run.yaml")


def test_the_name_of_a_flag_leads_to_that_of_the_setting(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lr: 0.01\nstudent-size: 64\n--views: 4\n")
    with pytest.raises(SettingError) as caught:
        read_config(tmp_path / "run.yaml")
    for flag, name in [("lr", "lr_peak"), ("student-size", "student_size_px"), ("--views", "n_views")]:
        assert f"unknown key '{flag}'; did you mean '{name}'?" in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("3", 3), ("1,5", "1,5")])
def test_a_number_without_a_dot_is_a_number_though_yaml_takes_it_for_text(
    text: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(f"lr_peak: {text}\nstudent: 1e-3\n")
    assert read_config(tmp_path / "run.yaml") == {"lr_peak": value, "student": "1e-3"}


def test_broken_yaml_says_in_which_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epochs: 3\nalpha: 0.3: 0.4\n")
    with pytest.raises(SettingError, match=r"is not YAML \(line 2: "):
        read_config(tmp_path / "run.yaml")


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file"):
        read_config(tmp_path / "run.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert read_config(tmp_path / "run.yaml") == {}


def test_the_settings_of_a_run_serve_another(tiny_run: Path, cli: Cli, tmp_path: Path) -> None:
    assert TrainConfig(**read_config(tiny_run / "config.json")) == saved_config(tiny_run)
    words = ("train", tmp_path, tmp_path / "t.h5", "--config", tiny_run / "config.json", "--alpha", "0.7")
    assert cli(*words, "--write-config", tmp_path / "run.yaml")[0] == 0
    assert TrainConfig(**read_config(tmp_path / "run.yaml")) == replace(saved_config(tiny_run), alpha=0.7)


def test_flags_win_over_the_file_and_the_file_over_the_defaults(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epochs: 7\nalpha: 0.9\n")
    words = ("train", tmp_path, tmp_path / "t.h5", "--config", tmp_path / "run.yaml")
    code, out, err = cli(*words, "--alpha", "0.3", "--write-config", tmp_path / "all.yaml")
    assert (code, err) == (0, "")
    assert "train with them by --config" in out
    found = read_config(tmp_path / "all.yaml")
    assert (found["epochs"], found["alpha"]) == (7, 0.3), "a flag wins although it names the default"
    assert found == asdict(TrainConfig(epochs=7))
    code, _, err = cli(*words)
    assert (code, "Missing option '-o' / '--out'" in err) == (2, True), "only a training needs it"


def test_a_value_of_the_wrong_type_in_the_file_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epochs: many\n")
    words = ("train", tmp_path, tmp_path / "t.h5", "-o", tmp_path / "run", "--config", tmp_path / "run.yaml")
    code, _, err = cli(*words)
    assert code == 1
    assert err == "Error: epochs must be a whole number, got 'many'\n"
