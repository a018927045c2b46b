"""A student of the user's own: what a file may be, and what is said of one that is not."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import SettingError
from pipeline.students.from_file import build_from_file
from pipeline.students.names import find_source
from pipeline.students.prepare import prepare_student

Own = Callable[..., str]


def test_a_users_file_makes_a_student(own: Own, classes: tuple[str, ...]) -> None:
    student = own()
    built = prepare_student(student, classes, 32, seed=1)
    assert built.module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert built.source.name == "my_model.py:build", "no folder of the user's in what is handed on"
    assert built.ids == {"student_sha256": hashlib.sha256(Path(student.rpartition(":")[0]).read_bytes()).hexdigest()}


def test_the_example_of_the_documentation_is_a_student(own: Own, classes: tuple[str, ...]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "students.md").read_text(encoding="utf-8")
    text = page.split("```python\n")[1].split("```")[0]
    assert prepare_student(own(text), classes, 64).module(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("signature", "call"),
    [
        ("n_classes", "n_classes"),
        ("num_classes", "num_classes"),
        ("*, num_classes, width=8", "num_classes"),
        ("outputs", "outputs"),
        ("n_classes=1000, size_px=224", "n_classes if size_px == 32 else 0"),
        ("size_px, n", "n if size_px == 32 else 0"),
    ],
)
def test_a_function_is_told_the_classes_and_if_it_asks_the_size(
    signature: str, call: str, own_with: Own, classes: tuple[str, ...]
) -> None:
    student = own_with(build=f"def build({signature}):", result=f"return Net({call})")
    if signature == "size_px, n":
        with pytest.raises(SettingError, match=r"fails in build\(\): TypeError: .*multiple values"):
            prepare_student(student, classes, 32)
        return
    assert prepare_student(student, classes, 32).module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_class_is_a_function_too(own: Own, classes: tuple[str, ...]) -> None:
    assert prepare_student(own(function="Net"), classes, 32).source.name == "my_model.py:Net"


def test_weights_that_numpy_and_python_draw_depend_on_the_seed_as_well(own_with: Own) -> None:
    drawn = "net = Net(n_classes); net.stem.weight.data *= float(np.random.rand() + random.random()); return net"
    source = find_source(own_with(build="import random\nimport numpy as np\ndef build(n_classes):", result=drawn))
    after = []
    for _ in range(2):
        np.random.seed(5)
        random.seed(5)
        first, again = (build_from_file(source, 3, 32, seed=1)[0].state_dict() for _ in range(2))
        assert torch.equal(first["stem.weight"], again["stem.weight"])
        after.append((np.random.rand(), random.random()))
    np.random.seed(5)
    random.seed(5)
    assert after == [(np.random.rand(), random.random())] * 2, "the caller's own random numbers go on undisturbed"


def test_the_weights_depend_on_the_seed_alone(own: Own) -> None:
    source = find_source(own())
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = build_from_file(source, 3, 32, seed=1)[0].state_dict()
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's own random numbers go on undisturbed"
    torch.manual_seed(99)
    again = build_from_file(source, 3, 32, seed=1)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build_from_file(source, 3, 32, seed=2)[0].state_dict()
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_modules_beside_the_file_are_found_and_then_forgotten(own: Own, classes: tuple[str, ...]) -> None:
    """Each of two folders has its own `blocks` and its own package `parts`."""
    path = list(sys.path)
    for folder, width in (("a", 4), ("b", 6)):
        own(f"WIDTH = {width}", file=f"{folder}/blocks.py")
        own("from parts.deep import relu", file=f"{folder}/parts/__init__.py")
        own("from torch import relu", file=f"{folder}/parts/deep.py")
        student = own(
            """
            from torch import nn
            from blocks import WIDTH
            class Net(nn.Module):
                def __init__(self, n):
                    super().__init__()
                    self.stem, self.head = nn.Conv2d(3, WIDTH, 3), nn.Linear(WIDTH, n)
                def forward(self, x):
                    return self.head(relu(self.stem(x)).mean((2, 3)))
            def build(n_classes):
                global relu
                from parts import relu
                return Net(n_classes)
            """,
            file=f"{folder}/my_model.py",
        )
        assert prepare_student(student, classes, 32).module.state_dict()["stem.weight"].shape[0] == width
        assert sys.path == path
        assert not {"blocks", "parts", "parts.deep"} & set(sys.modules)


def test_a_changed_file_is_read_anew(own: Own, own_with: Own, classes: tuple[str, ...]) -> None:
    first = prepare_student(own(), classes, 32)
    second = prepare_student(own_with(width="9"), classes, 32)
    assert (first.module.stem.out_channels, second.module.stem.out_channels) == (8, 9)
    assert first.ids != second.ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\n\n1 / 0\n", r"fails in the import of its file: ZeroDivisionError: .* \(my_model.py, line 3\)"),
        ("def build(n_classes)\n", r"SyntaxError: expected ':' .*\(my_model.py, line 1\)"),
        ("import nonsense_package\n", r"ModuleNotFoundError: No module named 'nonsense_package' \(my_model.py, line 1"),
        ("raise SystemExit\n", r"SystemExit: it ended the process"),
        ("def build(n_classes):\n    x = {}\n    return x['depth']\n", r"in build\(\): KeyError: 'depth' .*line 3\)"),
        ("def build(n_classes):\n    pass\n", r"my_model.py:build returns nothing: it should return an nn.Module"),
        ("def build(n_classes):\n    return 'net'\n", r"returns str, not an nn.Module"),
        ("def biuld(n):\n    pass\nclass Net:\n    pass\n", r"'build'; did you mean 'biuld'\? \(it has biuld, Net\)"),
        ("from torch import nn\n", r"my_model.py has no function 'build' \(it has none\)"),
        ("def build():\n    pass\n", r"takes no n_classes: expected build\(n_classes\)"),
        ("def build(depth, width):\n    pass\n", r"takes \(depth, width\): expected build\(n_classes\)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_file_and_line(text: str, message: str, own: Own, classes: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=message):
        prepare_student(own(text), classes, 32)


def test_a_mistake_beside_the_file_is_told_with_its_own_line(own: Own, classes: tuple[str, ...]) -> None:
    own("\n\nraise ValueError('too deep\\nreally')", file="blocks.py")
    with pytest.raises(SettingError, match=r"ValueError: too deep \(blocks.py, line 3\)"):
        prepare_student(own("import blocks"), classes, 32)


def test_a_module_named_like_a_package_of_ours_is_said_to_be_hidden(own: Own, classes: tuple[str, ...]) -> None:
    own("WIDTH = 8", file="data.py")
    with pytest.raises(SettingError, match=r"data.py beside it is hidden by a package of softlabel: rename it"):
        prepare_student(own("from data import WIDTH"), classes, 32)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"no such file: .*none\.py .*FILE\.py:FUNCTION"):
        prepare_student(f"{tmp_path / 'none.py'}:build", classes, 32)


def test_annotations_of_a_users_file_are_what_they_say(own: Own, classes: tuple[str, ...]) -> None:
    """TorchScript reads those of a class; as strings it would not know them."""
    student = own("""
        import torch
        from torch import nn

        class Net(nn.Module):
            depth: torch.jit.Final[int]

            def __init__(self, n_classes):
                super().__init__()
                self.depth, self.head = 2, nn.Linear(3, n_classes)

            def forward(self, x):
                x = x.mean((2, 3))
                for _ in range(self.depth):
                    x = x * 0.5
                return self.head(x)

        def build(n_classes):
            return Net(n_classes)
    """)
    assert prepare_student(student, classes, 32).module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
