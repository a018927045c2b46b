"""The commands that meet full disks: what each starts from, and what it does on a disk with room."""

import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.demo.lesions import write_lesions
from reliability import forks, tiny
from reliability.attempts import attempt
from reliability.contents import content_of_cache, content_of_run
from reliability.disks import SmallDisk, Squeeze, files

# The named bytes may be those of a whole page; a table with times in it has not always the same length.
MORE_BYTES, FEWER_BYTES = 4096, 64
SCENARIOS = ("build", "build, extending", "merge", "train", "train, resumed", "export", "evaluate --json")


@dataclass(frozen=True)
class Scenario:
    """One command, the files that stand on the disk before it, and what counts as the same result."""

    name: str
    out: Path
    words: list[str]
    start: dict[str, Path]
    """Name on the disk -> what is copied there."""
    result: Callable[[Path], object]


class World:
    """What all trials share, each part made when it is first asked for: images, a teacher, undisturbed results."""

    def __init__(self, folder: Path, disk: SmallDisk) -> None:
        self.folder, self.disk = folder, disk
        tiny.shrink_segments()

    @cached_property
    def images(self) -> Path:
        """A small image set."""
        write_lesions(self.folder / "images", {"train": 4, "val": 2, "test": 1}, size_px=32)
        return self.folder / "images"

    @cached_property
    def teacher(self) -> Path:
        """A tiny SigLIP model."""
        return tiny.write_teacher(self.folder / "teacher", self.images, width=64)

    @cached_property
    def one_view(self) -> Path:
        """A cache of the clean views."""
        return self._made("one-view.h5", self._build_words(self.folder / "one-view.h5", views=1))

    @cached_property
    def cache(self) -> Path:
        """The cache of all views."""
        return self._made("all.h5", self._build_words(self.folder / "all.h5"))

    @cached_property
    def finished_run(self) -> Path:
        """A run of all epochs."""
        return self._made("finished", self._train_words(self.folder / "finished"))

    @cached_property
    def interrupted_run(self) -> Path:
        """A run that met a full disk in its last epoch."""
        scenario = self.scenario("train")
        lasts = [write for write in undisturbed(self, scenario)[0] if write.name == "last.pt"]
        self.lay_out(scenario)
        attempt(self.disk, scenario.words, Squeeze(lasts[-1].number, 0))
        self.disk.release()
        return Path(shutil.copytree(scenario.out, self.folder / "interrupted"))

    def scenario(self, name: str) -> Scenario:
        """One of SCENARIOS."""
        root = self.disk.root
        cache, run_folder = root / "t.h5", root / "run"
        if name == "build":
            return Scenario(name, cache, self._build_words(cache), {}, content_of_cache)
        if name == "build, extending":
            return Scenario(name, cache, self._build_words(cache), {"t.h5": self.one_view}, content_of_cache)
        if name == "merge":
            out, start = root / "m.h5", {"a.h5": self.one_view, "b.h5": self.cache}
            words = ["cache", "merge", *(str(root / source) for source in start), "-o", str(out)]
            return Scenario(name, out, words, start, content_of_cache)
        if name == "train":
            return Scenario(name, run_folder, self._train_words(run_folder), {}, content_of_run)
        if name == "train, resumed":
            words = [*self._train_words(run_folder), "--resume"]
            return Scenario(name, run_folder, words, {"run": self.interrupted_run}, content_of_run)
        if name == "export":
            out = root / "student.pt"
            return Scenario(name, out, ["export", str(self.finished_run), "-o", str(out)], {}, Path.read_bytes)
        out = root / "scores.json"
        words = ["evaluate", str(self.finished_run), str(self.images), "--json", str(out), "--workers", "0"]
        return Scenario(name, out, words, {}, Path.read_bytes)

    def lay_out(self, scenario: Scenario) -> None:
        """The disk as it is before the command."""
        self.disk.wipe()
        for name, source in scenario.start.items():
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, self.disk.root / name)

    def _build_words(self, out: Path, views: int = 6) -> list[str]:
        teacher = ["--teacher", str(self.teacher), "--views", str(views), "--batch-size", "8", "--precision", "fp32"]
        return ["cache", "build", str(self.images), "-o", str(out), *teacher, "--device", "cpu"]

    def _train_words(self, out: Path) -> list[str]:
        student = ["--student", "shufflenet_v2_x0_5", "--student-size", "32", "--epochs", "2", "--batch-size", "10"]
        return ["train", str(self.images), str(self.cache), "-o", str(out), *student, "--device", "cpu"]

    def _made(self, name: str, words: list[str]) -> Path:
        forks.must(words)
        return self.folder / name


@dataclass(frozen=True)
class Write:
    """One file that an undisturbed command wrote."""

    number: int
    name: str
    passage: int
    """The how-manieth file of this name, or the how-manieth segment."""
    used_bytes: int
    """What the command had used of the disk before."""
    n_bytes: int
    """At least so many."""

    def label(self, scenario: Scenario) -> str:
        """For people."""
        if self.name == scenario.out.name and self.name.endswith(".h5"):
            return "merge"
        if self.name.endswith(".h5"):
            return "first segment" if self.passage == 1 else "later segment"
        if self.name == "last.pt":
            return "first last.pt" if self.passage == 1 and not scenario.start else "later last.pt"
        return self.name


def undisturbed(world: World, scenario: Scenario) -> tuple[list[Write], object, set[str]]:
    """What the command writes when there is room: its writes, its result, the files that stand in the end."""
    world.lay_out(scenario)
    done = attempt(world.disk, scenario.words)
    if done.exit_code != 0:
        raise RuntimeError(f"undisturbed, softlabel {shlex.join(scenario.words)} failed: {done.output}")
    n_bytes = {entry["by"]: entry["n_bytes"] for entry in done.entries if "published" in entry}
    writes, passages = list[Write](), Counter[str]()
    for entry in done.entries:
        if "write" in entry:
            kind = "segment" if entry["name"].endswith(".h5") and entry["name"] != scenario.out.name else entry["name"]
            passages[kind] += 1
            # The lock file is not published; it has some bytes.
            least = n_bytes.get(entry["write"], 1) - FEWER_BYTES * entry["name"].endswith(".csv")
            writes.append(Write(entry["write"], entry["name"], passages[kind], entry["used"], least))
    return writes, scenario.result(scenario.out), set(files(world.disk.root))
