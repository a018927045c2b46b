"""The command line: one line of result, errors without traceback, exit codes, instant help."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "command",
    ["", "data", "data check", "teacher", "teacher fit", "cache",
     *("cache " + verb for verb in ("build", "import", "info", "merge", "probe", "rehead", "verify")),
     "train", "evaluate", "report", "export", "predict", "benchmark", "demo",
     "course", *("course " + verb for verb in ("submit", "status", "leaderboard"))],
)  # fmt: skip
def test_every_command_has_help(command: str, cli: Cli) -> None:
    code, out, _ = cli(*command.split(), "--help")
    assert code == 0
    assert "Usage: softlabel" in out


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'numpy', 'h5py', 'tqdm', 'requests'}"
    check = f"import sys, pipeline.cli; sys.exit(str(sorted({heavy} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_info_of_a_file_alone_loads_no_torch(tiny_cache: Path) -> None:
    check = (
        "import sys; from pipeline.cli import run; "
        "run(['cache', 'info', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check, str(tiny_cache)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe_id" in done.stdout


def test_the_main_path_from_images_to_predictions(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    cache, run, model = tmp_path / "t.h5", tmp_path / "run", tmp_path / "m.pt"
    build = ("cache", "build", tiny_data, "-o", cache, "--teacher", tiny_teacher, "--views", 2, "--precision", "fp32")
    code, out, err = cli(*build)
    assert code == 0, err
    assert out.startswith(f"{cache}: 90 views of 60 images (90 computed now")
    assert "prompt  melanoma: melanoma" in err
    assert cli(*build)[1].startswith(f"{cache}: 90 views of 60 images (0 computed now")

    code, out, _ = cli("cache", "info", cache)
    assert code == 0
    assert "30 with 1, 30 with 2" in out
    assert json.loads(cli("cache", "info", cache, "--json")[1])["rows"] == 90

    train = ("train", tiny_data, cache, "-o", run, "--student", "shufflenet_v2_x0_5", "--student-size", 32)
    code, out, err = cli(*train, "--epochs", 1, "--batch-size", 8, "--workers", 0)
    assert code == 0, err
    assert out.startswith(f"{run}: best epoch 1")
    assert "always the largest class: 0.200" in err
    assert "epoch   1/1  loss_hard" in err

    code, out, err = cli("evaluate", run, tiny_data, "--split", "test", "--json", tmp_path / "e.json")
    assert code == 0, err
    assert "confusion: rows true, columns predicted" in out
    assert json.loads((tmp_path / "e.json").read_text())["splits"]["test"]["student"]["n_samples"] == 15
    assert list(json.loads(cli("evaluate", run, tiny_data, "--json", "-")[1])["splits"]) == ["train", "val", "test"]

    code, out, err = cli("export", run, "-o", model)
    assert code == 0, err
    assert "agrees with the checkpoint on noise images" in out

    code, out, err = cli("predict", model, *sorted(tiny_data.glob("test/*/*.png"))[:3])
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 3
    assert {"image", "label", "melanoma"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cache", "info", "nothing.h5"), "nothing.h5"),
        (("cache", "build", "nothing", "-o", "t.h5"), "no such folder: nothing; expected DATA/<split>/<class>/*"),
        (("train", "DATA", "nothing.h5", "-o", "run"), "nothing.h5"),
        (
            ("train", "DATA", "CACHE", "-o", "run", "--student", "shuflenet_v2_x1_0"),
            "did you mean 'shufflenet_v2_x1_0'",
        ),
        (("train", "DATA", "CACHE", "-o", "run", "--alpha", "2"), "alpha must be in 0..1, got 2.0"),
        (("train", "DATA", "CACHE", "-o", "run", "--device", "mps"), "this machine has no device 'mps'"),
        (("evaluate", "nothing", "DATA"), "no such run folder or model file: nothing"),
        (("export", "nothing", "-o", "m.pt"), "no such run folder: nothing"),
        (("predict", "nothing", "x.jpg"), "no such run folder or model file: nothing"),
    ],
)
def test_a_users_mistake_is_one_error_line_and_exit_1(
    words: tuple[str, ...], said: str, cli: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {"DATA": str(tiny_data), "CACHE": str(tiny_cache)}
    code, out, err = cli(*(given.get(word, word) for word in words))
    assert code == 1
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_or_command_is_usage_and_exit_2(cli: Cli) -> None:
    code, _, err = cli("train", "a", "b", "-o", "c", "--temprature", "3")
    assert code == 2
    assert "--temperature" in err
    assert cli("trian")[0] == 2


def test_the_default_teacher_without_network_or_token_is_three_lines_and_exit_1(
    tiny_data: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "softlabel", "cache", "build", str(tiny_data), "-o", "t.h5"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**clean_environment, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    error = done.stderr[done.stderr.index("Error:") :].strip().splitlines()
    assert len(error) == 3, done.stderr
    assert "google/medsiglip-448" in error[0]
    assert "--teacher DIR" in error[1]
    assert "softlabel demo" in error[2]
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
def test_a_log_that_goes_to_a_full_disk_ends_no_command(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    build = ("cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--views", 1)
    missing = ("cache", "info", tmp_path / "missing.h5")
    for words, code in ((build, 0), (missing, 1)):
        command = [sys.executable, "-m", "softlabel", *map(str, words)]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, env=clean_environment, check=False)
        assert (done.returncode, done.stdout[:20]) == (code, f"{tmp_path}/t.h5"[:20].encode() if code == 0 else b"")


def test_escapes_in_class_names_are_shown_not_obeyed(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    for folder in data.glob("*/melanoma"):
        folder.rename(folder.with_name("mel\x1b[31m anoma"))
    words = ("--template", "a {}", "--data", data, "--teacher", tiny_teacher)
    code, _, err = cli("cache", "rehead", tiny_cache, *words, "-o", tmp_path / "r.h5")
    assert code == 0, err
    assert "prompt  mel\\x1b[31m anoma: a mel\\x1b[31m anoma\n" in err
    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--workers", 0, "--anyway")
    assert cli("train", data, tmp_path / "r.h5", "-o", tmp_path / "run", *student)[0] == 0
    code, out, _ = cli("evaluate", tmp_path / "run", data, "--workers", 0)
    assert (code, "\x1b" in out, "mel\\x1b[31m anoma" in out) == (0, False, True)


def test_debug_shows_the_traceback(cli: Cli) -> None:
    with pytest.raises(FileNotFoundError):
        cli("--debug", "cache", "info", "nothing.h5")


def test_an_unsplit_folder_is_split_once_for_all_commands(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = tmp_path / "images"
    for split in ("train", "val", "test"):
        for folder in (tiny_data / split).iterdir():
            for path in folder.iterdir():
                (data / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, data / folder.name / f"{split}-{path.name}")
    code, _, err = cli("cache", "build", data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--views", 2)
    assert code == 0, err
    assert "split once by class" in err
    words = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1)
    code, _, err = cli("train", data, tmp_path / "t.h5", "-o", tmp_path / "run", *words)
    assert code == 0, err
    assert "split once" not in err
    assert cli("evaluate", tmp_path / "run", data)[0] == 0


def test_the_defaults_of_the_command_line_are_those_of_the_settings() -> None:
    from pipeline.build import BuildConfig
    from pipeline.commands.cache import cache_build
    from pipeline.commands.repair import probe
    from pipeline.commands.train import train as train_command
    from pipeline.repair.probe import ProbeConfig
    from pipeline.train import TrainConfig

    given = (
        (cache_build, ["DATA", "-o", "t.h5"], BuildConfig()),
        (probe, ["CACHE", "DATA", "-o", "p.h5"], ProbeConfig()),
        (train_command, ["DATA", "t.h5", "-o", "r"], TrainConfig()),
    )
    for command, words, settings in given:
        parsed = command.make_context("softlabel", words).params
        shared = {name: value for name, value in parsed.items() if hasattr(settings, name)}
        assert len(shared) >= 7
        assert shared == {name: getattr(settings, name) for name in shared}
