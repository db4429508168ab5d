"""One invocation of a verb: its flags as overrides of the configuration, its console, its one call."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.cli.attack_flags import (
    adversary,
    attack_list,
    given_steps,
    measured_attacks,
    step_settings,
    takes_steps,
)
from robustcli.cli.flags import FLAGS, FlagValue, spellings, texts_of
from robustcli.cli.model_flags import (
    DATA_KEYS,
    MODEL_KEYS,
    as_meant,
    require_model,
    require_user_code,
    user_code,
    with_user_code,
)
from robustcli.errors import UsageError
from robustcli.terminal.console import Console

if TYPE_CHECKING:
    from robustcli.config.load import Loaded
    from robustcli.config.overlay import Override

_SMOKE = {
    "train": ("train.batch_size=32", "train.val_n=32", "train.save_every=6", "train.validate_every=0.15"),
    "eval": ("eval.n=32",),
    "attack": ("eval.n=8",),
    "certify": ("eval.n=8", "eval.checks=0", "certify.smoothing.n=1000", "certify.alpha_steps=2"),
    "guard fit": ("guard.fit.steps=3",),
    "guard eval": ("eval.n=16", "eval.checks=0"),
    "gate": ("eval.n=32",),
}
#: Verbs that need a ready model.
_MEASURES = ("eval", "attack", "certify", "guard fit", "guard eval", "gate", "export")
_SMOKE_STEPS = 3
_SMOKE_TRAIN_STEPS = 12
#: What a run's configuration does not say for those who measure the run: facts of a machine and of one call.
OF_THE_CALL = (
    "device",
    "threads",
    "deterministic",
    "seed",
    "out",
    "data.download",
    "data.workers",
    "data.storage",
    "data.cache",
    "data.timeout",
    "precision",
    "search.precision",
    "search.fold_bn",
    "search.channels_last",
    "search.compile",
)


def _no_settings(loaded: Loaded) -> list[str]:
    return []


#: Keys that describe the files of one data set, and say nothing of another one.
OF_THE_DATA = (
    "data.splits.train",
    "data.splits.val",
    "data.splits.test",
    "data.splits.ignore",
    "data.classes",
    "data.max_value",
    "data.link_root",
    "data.test_fraction",
)


class Call:
    """What a verb gets.

    Args:
        verb: its name.
        values: all flags by name; one that was not given is None or False.
        console: where results and messages go.
    """

    def __init__(self, verb: str, values: Mapping[str, FlagValue], console: Console) -> None:
        self.verb, self.values, self.console = verb, values, console

    def on(self, switch: str) -> bool:
        """Whether a switch was given."""
        return bool(self.values.get(switch))

    def reports(self) -> bool:
        """Whether the run leaves a report.html: --no-report and ROBUSTCLI_NO_REPORT say that it does not."""
        return not self.on("no_report") and os.environ.get("ROBUSTCLI_NO_REPORT", "") in ("", "0")

    def text(self, name: str) -> str | None:
        """The value of a flag that takes a text."""
        value = self.values.get(name)
        assert value is None or isinstance(value, str), name
        return value

    def texts(self, name: str) -> list[str]:
        """All values of a flag that is repeated, or of the bare words."""
        return texts_of(self.values.get(name))

    def replaced(self, **values: FlagValue) -> Call:
        """The same call with other values of some flags."""
        return Call(self.verb, {**self.values, **values}, self.console)

    def source(self) -> str | None:
        """CONFIG: the only bare word that is not key=value; None when there is none."""
        words = [word for word in self.texts("words") if not _is_assignment(word)]
        if len(words) > 1:
            raise UsageError(
                f"one CONFIG, please: got {' and '.join(map(repr, words[:3]))}",
                hint="settings are key=value",
            )
        return next(iter(words), None)

    def overrides(self) -> list[Override]:
        """--smoke first, then flags, then key=value: what is said more exactly wins."""
        said = [*self._smoke(), *self._flags(), *self.fail_under(), *self.settings()]
        return [as_meant(item, self.text("plugin")) for item in said]

    def settings(self) -> list[Override]:
        """--set, then key=value."""
        from robustcli.config.overlay import parse_assignment

        words = [word for word in self.texts("words") if _is_assignment(word)]
        return [parse_assignment(text, "command line") for text in [*self.texts("set"), *words]]

    def _smoke(self) -> list[Override]:
        """What makes a run tiny; a budget that the user gave stays."""
        from robustcli.config.overlay import parse_assignment

        if not self.on("smoke"):
            return []
        settings = list(_SMOKE.get(self.verb, ()))
        if self.verb == "train" and not self._says_length():
            settings.append(f"train.steps={_SMOKE_TRAIN_STEPS}")
        return [parse_assignment(text, "--smoke") for text in settings]

    def _says_length(self) -> bool:
        """Whether the user gave a budget, which --smoke must not contradict."""
        keys = {item.key for item in self.settings()}
        budgets = {"train.epochs", "train.steps", "train.minutes"}
        return bool(self.text("epochs") or self.text("minutes") or keys & budgets)

    def _flags(self) -> list[Override]:
        """The flags that set a key of the configuration."""
        from robustcli.config.overlay import Override

        overrides = []
        for name, flag in FLAGS.items():
            value = self.values.get(name)
            if flag.key is None or value is None or value is False:
                continue
            text = "true" if value is True else str(value)
            overrides.append(Override(flag.key, text, spellings(name)[0]))
        return overrides

    def fail_under(self) -> list[Override]:
        """--fail-under METRIC=VALUE as settings of `eval.fail_under`."""
        from robustcli.config.overlay import Override

        overrides = []
        for text in self.texts("fail_under"):
            metric, equals, value = text.partition("=")
            if not equals:
                raise UsageError(
                    f"--fail-under {text!r} is not METRIC=VALUE", hint="for example robust_acc=0.45"
                )
            overrides.append(Override(f"eval.fail_under.{metric}", value, "--fail-under"))
        return overrides

    def load(self, adjust: Callable[[Loaded], list[str]] = _no_settings) -> Loaded:
        """The configuration of this invocation. `adjust` may ask for more settings after a first look."""
        from robustcli.config.load import load_config
        from robustcli.config.overlay import parse_assignment

        overrides = self.overrides()
        stored = self._source_of_model(overrides)
        read = partial(load_config, stored or self.source(), without=_not_taken(overrides) if stored else ())
        listed = self._attack_list()
        if (code := user_code(self.text("plugin"), overrides)) is not None:
            overrides = with_user_code(code, overrides, partial(read, bind=False))
        if _changes_norm(partial(read, bind=False), listed + overrides):
            # A radius means nothing under another norm.
            overrides = [parse_assignment("ball.eps=null", "--norm"), *overrides]
        loaded = read(listed + overrides)
        more = adjust(loaded) + self._attack_settings(loaded)
        if more:
            loaded = read([parse_assignment(text, "command line") for text in more] + overrides)
        self._check_model(loaded, code)
        return loaded

    def plugin(self) -> str | None:
        """FILE.py:factory of the user's own network, from `--plugin` or from `--model`."""
        return user_code(self.text("plugin"), self.overrides())

    def _check_model(self, loaded: Loaded, code: str | None) -> None:
        """Raises an error when the verb takes a model and nobody says which, or its code is not given."""
        if "plugin" not in self.values or code is not None:
            return
        require_user_code(loaded.config.model)
        if self.verb in _MEASURES:
            require_model(loaded)

    def _source_of_model(self, overrides: list[Override]) -> str | None:
        """The configuration of the run in `--model run:DIR` or `guard:DIR`, where there is no CONFIG.

        What is measured comes from the run: data, ball, attacks. `OF_THE_CALL` names what does not.
        """
        named = [item.value for item in overrides if item.key in MODEL_KEYS]
        model = next(reversed(named), "")
        kind, _, folder = model.partition(":")
        if self.verb == "train" or self.source() is not None or kind not in ("run", "guard"):
            return None
        from robustcli.store.latest import resolve_run

        path = resolve_run(Path(folder))
        # run:DIR/checkpoints/step-N is a model of the run DIR
        stored = [folder / "config.resolved.yaml" for folder in (path, *list(path.parents)[:2])]
        return next((str(file) for file in stored if file.is_file()), None)

    def _attack_list(self) -> list[Override]:
        """--attack, to stand before all other overrides, so that attacks.0.key=value means these attacks."""
        from robustcli.config.overlay import parse_assignment

        attack = self.text("attack")
        if not attack or self.verb == "train":
            return []
        return [parse_assignment(attack_list(attack), "--attack")]

    def _attack_settings(self, loaded: Loaded) -> list[str]:
        """--attack and --steps, and short attacks under --smoke."""
        attack, steps = self.text("attack"), self.text("steps")
        settings: list[str] = []
        if self.verb == "train":
            attacks = adversary(loaded)
        else:
            attacks = measured_attacks(loaded, attack)
            if attack is not None:
                settings.append(attack_list(attack))
        if self.on("smoke") and not steps:
            settings += step_settings(attacks, _SMOKE_STEPS)
            if self.verb == "train" and takes_steps(loaded.config.train.val_attack.name):
                settings.append(f"train.val_attack.steps={_SMOKE_STEPS}")
        elif steps is not None:
            settings += given_steps(attacks, steps)
        return settings


def _not_taken(overrides: list[Override]) -> tuple[str, ...]:
    """Keys of a stored configuration that do not hold for this call, which may bring other data."""
    not_taken = list(OF_THE_CALL)
    if any(item.key in DATA_KEYS for item in overrides):
        not_taken += OF_THE_DATA
    named = [item.value for item in overrides if item.key in MODEL_KEYS]
    if named and named[-1].startswith("guard:"):
        not_taken.append("defences")  # the guard has them inside
    return tuple(not_taken)


def _changes_norm(read: Callable[[list[Override]], Loaded], overrides: list[Override]) -> bool:
    """Whether the call changes the norm and says no radius for it, where the configuration has a radius.

    `read` looks at the configuration without its names: an attack may know the new norm alone.
    """
    norms = [override.value for override in overrides if override.key == "ball.norm"]
    if not norms or any(override.key == "ball.eps" for override in overrides):
        return False
    before = read([override for override in overrides if override.key != "ball.norm"]).config.balls
    stated = any(ball.eps is not None for ball in before)
    return stated and norms[-1] not in [ball.norm for ball in before]


def _is_assignment(word: str) -> bool:
    """key=value, where key looks like a dotted path; a file name with "=" in a folder is still a file."""
    key, equals, _ = word.partition("=")
    if equals and key.startswith("thresholds."):  # whose keys have a radius: robust_acc@linf:8/255
        return True
    return equals != "" and "/" not in key and re.sub("[._-]", "", key).isalnum()
