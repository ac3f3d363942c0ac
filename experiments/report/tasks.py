"""What a run was asked to learn, taken from the settings in its result.json.

Two runs did the same task if the same experiment ran with the same settings, apart from those that are compared with
each other. The order of the flags on the command line, and flags that repeat a default, make no difference.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from experiments.tasks import adding, chars, copying, digits, imdb, mnist_pixels, mnist_rows, speech, vowels, words


class Experiment(NamedTuple):
    """A module that trains, and the title of its task with the default flags."""

    module: ModuleType
    title: str

    @property
    def defaults(self) -> dict[str, Any]:
        return {field.name: field.default for field in dataclasses.fields(self.module.Config)}


# Name of the experiment -> its module and a title, those that need a short memory first.
KNOWN: dict[str, Experiment] = {
    "digits": Experiment(digits, "Digits by rows"),
    "vowels": Experiment(vowels, "Japanese vowels"),
    "mnist-rows": Experiment(mnist_rows, "MNIST by rows"),
    "speech": Experiment(speech, "Spoken digits"),
    "imdb": Experiment(imdb, "IMDB reviews"),
    "chars": Experiment(chars, "Tiny Shakespeare"),
    "words": Experiment(words, "Penn Treebank"),
    "adding": Experiment(adding, "Adding, 50 to 55 numbers"),
    "copy": Experiment(copying, "Copy memory"),
    "mnist-pixels": Experiment(mnist_pixels, "MNIST by pixels"),
}
# Settings in which runs of one task may differ: what is compared, and how the work was divided.
COMPARED = ("cell", "match", "forget_bias", "implementation", "initializer", "seed", "seeds", "at_once", "devices")
# How a title names a setting, in this order and before all others.
PHRASES = {
    "permuted": "permuted",
    "tie": "tied embedding",
    "hidden_size": "H = {}",
    "steps": "{:,} steps",
    "learning_rate": "learning rate {:g}",
    "input_scale": "pixels times {:g}",
    "warmup": "warm-up of {:,} steps",
    "dropout": "dropout {:g}",
    "recurrent_dropout": "recurrent dropout {:g}",
    "zoneout": "zoneout {:g}",
    "pass_over": "up to {} batches in a row passed over",
    "ema": "average of decay {:g}",
    "initializer": "initializer {}",
    "implementation": "{} gradient",
}
# Runs by pixels may differ in these from cell to cell; but not the oldest, which had no warm-up.
CHOSEN = ("learning_rate", "input_scale", "pass_over")
SPLITS = {"nanogpt": "nanoGPT's split", "choice": "tested on a part of the training set"}


@dataclass(frozen=True)
class Task:
    """What runs that are compared have in common; equal tasks are equal objects.

    Attributes:
        name: of the experiment.
        settings: (setting, value) of those that are not the experiment's defaults, in the order of the title.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        """Such as "Adding, 200 numbers, 2,000 steps"."""
        settings = dict(self.settings)
        title = KNOWN[self.name].title
        if (length := settings.pop("length", None)) is not None:
            title = f"Adding, {length:,} numbers"
        if self.name == "copy":
            title += f", {settings.pop('delay', KNOWN['copy'].defaults['delay'])} steps between"
        if (split := settings.pop("split", None)) is not None:
            title += f", {SPLITS[split]}"
        if settings.pop("text", None) == "kjv":
            title = "King James Bible"
        if self.name == "words":
            title += f", H = {settings.pop('hidden_size', KNOWN['words'].defaults['hidden_size'])}"
        return ", ".join([title, *(phrase(*setting) for setting in settings.items())])

    @property
    def place(self) -> tuple[Any, ...]:
        """What tasks are sorted by: the experiment, then the settings."""
        return (
            list(KNOWN).index(self.name),
            len(self.settings),
            [f"{name}{value:>9}" for name, value in self.settings],
        )


def phrase(setting: str, value: Any) -> str:
    """A setting in words, such as "2,000 steps"."""
    if setting == "forget_bias":
        return f"b_f = {value:g}" if isinstance(value, float) else f"b_f by {value}"
    if setting == "warmup" and not value:
        return "no warm-up"
    return PHRASES.get(setting, setting.replace("_", " ") + " {}").format(value)


def name_of(row: dict[str, Any]) -> str:
    """The experiment that a result is of: "adding" for one that is filed under "adding-200"."""
    return next(name for name in KNOWN if row["experiment"] == name or row["experiment"].startswith(f"{name}-"))


def asked(row: dict[str, Any]) -> dict[str, Any]:
    """The settings of a result.json that differ from the experiment's defaults, in the order of a title.

    None means "not asked for": settings that came later are missing in old files, and some cells have no forget bias.
    """
    defaults = KNOWN[name_of(row)].defaults
    order = dict.fromkeys(["text", "split", "length", "delay", *PHRASES, *defaults])
    settings = {name: row["settings"].get(name) for name in order if name in defaults}
    return {name: value for name, value in settings.items() if value is not None and value != defaults[name]}


def task_of(row: dict[str, Any], compared: Iterable[str] = COMPARED) -> Task:
    """The task of a result.json, for a comparison of runs that may differ in the settings ``compared``."""
    differing = {*compared, *chosen_of(row)}
    return Task(name_of(row), tuple(item for item in asked(row).items() if item[0] not in differing))


def chosen_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The settings of a run that were chosen for its cell, so that runs which are compared may differ in them."""
    return CHOSEN if name_of(row) == "mnist-pixels" and row["settings"].get("warmup") != 0 else ()
