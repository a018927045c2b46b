"""What is done to the builds of one output file: at which steps they are killed, and what changes in between."""

import random
from collections import Counter
from dataclasses import dataclass

ANY_MOMENT = "any moment"
EARLY_STEPS = (
    "lock taken", "plan written",
    "segment allocated", "segment half written", "segment written, not synced", "segment synced, not published",
    "segment published, temp still there", "segment's temp removed",
)  # fmt: skip
NEW_FILE_STEPS = ("merge published, temp still there", "merge's temp removed")
REPLACE_STEPS = ("merge about to replace", "merge has replaced")
LATE_STEPS = (
    "merge allocated", "merge half written", "merge written, not synced", "merge synced, not published",
    *NEW_FILE_STEPS, *REPLACE_STEPS,
    "first part removed", "middle part removed", "last part removed", "plan removed", "lock file removed",
    "folder removed",
)  # fmt: skip
# In the order in which a build passes them: a chain of kills in this order reaches each of them.
STEPS = (*EARLY_STEPS, *LATE_STEPS, ANY_MOMENT)
ANY_MOMENT_SHARES = 3
SHARE_WITH_WORKERS = 0.04


@dataclass(frozen=True)
class Scenario:
    """What changes between a kill and the resume: the images, or nothing."""

    name: str
    images: str
    """The image set of the first start; the folder keeps its path."""
    later_images: str
    base: str = ""
    """The reference cache that is extended; none for a fresh build."""
    between: str = ""
    """The image set of a full run between the two, which refuses it."""


SCENARIOS = (
    Scenario("fresh build", "some", "some"),
    Scenario("images added", "some", "all"),
    Scenario("images removed", "all", "some"),
    Scenario("broken image repaired", "some", "some", between="broken"),
    Scenario("extended by views", "some", "some", base="one view"),
    Scenario("extended by images", "all", "all", base="some"),
)


@dataclass(frozen=True)
class Kill:
    """Where a build dies."""

    step: str
    passage: int = 1
    """The how-manieth passage of the step."""
    after_frac: float = 0.0
    """For any moment: share of the time that an undisturbed build takes."""


@dataclass(frozen=True)
class Plan:
    """One trial: kills, changes of the images ("break", "change") and full runs ("run") in order; a run is the last."""

    number: int
    scenario: Scenario
    actions: tuple[Kill | str, ...]
    workers: bool

    @property
    def steps(self) -> list[str]:
        """Where it kills, in order."""
        return [action.step for action in self.actions if isinstance(action, Kill)]


def draw_plans(quota: Counter[str], rng: random.Random, first_number: int = 0) -> list[Plan]:
    """Trials that use up a quota of kills by step, some of them with two or three kills in a row."""
    left, plans = Counter(quota), list[Plan]()
    while left := +left:
        first = rng.choice(sorted(left))
        scenario = rng.choice([scenario for scenario in SCENARIOS if _is_possible(first, scenario)])
        n_kills = rng.choices((1, 2, 3), (6, 3, 1))[0]
        others = [s for s in STEPS if left[s] and s not in (first, ANY_MOMENT) and _is_possible(s, scenario)]
        if first == ANY_MOMENT:
            steps = [first] * min(n_kills, left[first])
        else:
            steps = sorted([first, *rng.sample(others, min(n_kills - 1, len(others)))], key=STEPS.index)
            if set(NEW_FILE_STEPS) <= set(steps):  # the one file is new only once
                steps.remove(NEW_FILE_STEPS[1])
        left.subtract(steps)
        actions = _actions(scenario, [_draw_kill(step, len(steps) > 1, rng) for step in steps], rng)
        plans.append(Plan(first_number + len(plans), scenario, actions, rng.random() < SHARE_WITH_WORKERS))
    return plans


def _is_possible(step: str, scenario: Scenario) -> bool:
    return step not in (NEW_FILE_STEPS if scenario.base else REPLACE_STEPS)


def _draw_kill(step: str, in_chain: bool, rng: random.Random) -> Kill:
    """Passages that every scenario has: 4 segments, 2 where earlier kills of the chain have sealed some; 20 writes."""
    segment = 1 if in_chain else rng.randint(1, 3)
    if step == "segment half written":
        return Kill(step, 10 * (segment - 1) + rng.randint(1, 10))
    if step == "merge half written":
        return Kill(step, rng.randint(1, 20))
    return Kill(step, segment if step.startswith("segment") else 1, rng.random())


def _actions(scenario: Scenario, kills: list[Kill], rng: random.Random) -> tuple[Kill | str, ...]:
    """Kills, with the change of images somewhere behind the first, and the last run."""
    at = rng.randint(1, len(kills))
    if scenario.between:  # a build with a broken image ends before its teacher starts, with exit code 1
        return (*kills[:at], "break", "run", "change", *kills[at:], "run")
    if scenario.images == scenario.later_images:
        return (*kills, "run")
    return (*kills[:at], "change", *kills[at:], "run")
