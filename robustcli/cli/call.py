"""One invocation of a verb: its flags as overrides of the configuration, its console, its one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.cli.options import FLAGS
from robustcli.errors import UsageError
from robustcli.terminal.console import Console

if TYPE_CHECKING:
    from robustcli.config.load import Loaded
    from robustcli.config.overlay import Override

_SMOKE = {
    "train": ("train.batch_size=32", "train.val_n=32", "train.save_every=6", "train.validate_every=0.15"),
    "eval": ("eval.n=32",),
    "attack": ("eval.n=8",),
}
#: What a run's configuration does not say for those who measure the run: facts of a machine and of one call.
OF_THE_CALL = (
    "device", "threads", "deterministic", "seed", "out", "data.download", "data.workers", "data.storage", "data.cache", "data.timeout",
    "precision", "search.precision", "search.fold_bn", "search.channels_last", "search.compile",
)  # fmt: skip
_SMOKE_STEPS = 3
_SMOKE_TRAIN_STEPS = 12


class Call:
    """What a verb gets.

    Args:
        verb: its name.
        values: all flags by name; absent ones are None or False.
        console: where results and messages go.
    """

    def __init__(self, verb: str, values: Mapping[str, Any], console: Console) -> None:
        self.verb, self.values, self.console = verb, values, console

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def source(self) -> str | None:
        """The first bare word that is not key=value."""
        words = [word for word in self.values.get("words") or [] if not _is_assignment(word)]
        if len(words) > 1:
            raise UsageError(
                f"one CONFIG, please: got {' and '.join(repr(w) for w in words[:3])}",
                hint="settings are key=value",
            )
        return words[0] if words else None

    def overrides(self) -> list[Override]:
        """--smoke first, then flags, then key=value: what is said more exactly wins."""
        from robustcli.config.overlay import Override, parse_assignment

        found = (
            [parse_assignment(text, "--smoke") for text in _SMOKE.get(self.verb, ())] if self["smoke"] else []
        )
        if self["smoke"] and self.verb == "train" and not self._says_length():
            found.append(parse_assignment(f"train.steps={_SMOKE_TRAIN_STEPS}", "--smoke"))
        for name, flag in FLAGS.items():
            value = self.values.get(name)
            if flag.key is not None and value not in (None, False):
                found.append(
                    Override(
                        flag.key,
                        "true" if value is True else str(value),
                        (flag.names or (f"--{name.replace('_', '-')}",))[0],
                    )
                )
        for text in self["fail_under"] or ():
            metric, equals, value = text.partition("=")
            if not equals:
                raise UsageError(
                    f"--fail-under {text!r} is not METRIC=VALUE", hint="for example robust_acc=0.45"
                )
            found.append(Override(f"eval.fail_under.{metric}", value, "--fail-under"))
        words = [word for word in self.values.get("words") or [] if _is_assignment(word)]
        return found + [parse_assignment(text, "command line") for text in [*(self["set"] or ()), *words]]

    def _says_length(self) -> bool:
        """Whether the user gave a budget, which --smoke must not contradict."""
        words = [*(self["set"] or ()), *(self.values.get("words") or [])]
        given = [word.partition("=")[0] for word in words]
        return bool(self["epochs"] or self["minutes"]) or any(
            f"train.{unit}" in given for unit in ("epochs", "steps", "minutes")
        )

    def load(self, adjust: Callable[[Loaded], list[str]] | None = None) -> Loaded:
        """The configuration of this invocation. `adjust` may ask for more settings after a first look."""
        from robustcli.config.load import load_config
        from robustcli.config.overlay import parse_assignment

        stored, overrides = self._source_of_model(), self.overrides()
        source, without = stored or self.source(), OF_THE_CALL if stored else ()
        # Before all others, so that attacks.0.key=value means these attacks.
        first = (
            [parse_assignment(_list_of(self["attack"]), "--attack")]
            if self["attack"] and self.verb != "train"
            else []
        )
        loaded = load_config(source, first + overrides, without=without)
        given = {override.key for override in overrides}
        if "ball.norm" in given and "ball.eps" not in given and loaded.config.ball.eps is not None:
            if (
                load_config(
                    source, first + [o for o in overrides if o.key != "ball.norm"], without=without
                ).config.ball.norm
                != loaded.config.ball.norm
            ):
                overrides = [
                    parse_assignment("ball.eps=null", "--norm"),
                    *overrides,
                ]  # a radius means nothing under another norm
                loaded = load_config(source, first + overrides, without=without)
        more = (adjust(loaded) if adjust else []) + self._attack_steps(loaded)
        if more:
            loaded = load_config(
                source, [parse_assignment(text, "command line") for text in more] + overrides, without=without
            )
        return loaded

    def _source_of_model(self) -> str | None:
        """`--model run:DIR` without a CONFIG measures as the run's configuration says: data, ball, attacks; see `OF_THE_CALL`."""
        model = self["model"] or next(
            (w.partition("=")[2] for w in self.values.get("words") or [] if w.startswith("model.name=")), None
        )
        if self.verb == "train" or self.source() is not None or not model or not model.startswith("run:"):
            return None
        from robustcli.store.latest import resolve_run

        stored = resolve_run(Path(model[4:])) / "config.resolved.yaml"
        return str(stored) if stored.is_file() else None

    def _attack_steps(self, loaded: Loaded) -> list[str]:
        """--attack and --steps, and short attacks under --smoke."""
        steps = _SMOKE_STEPS if self["smoke"] and not self["steps"] else self["steps"]
        return attack_settings(self.verb, loaded, self["attack"], steps)


def attack_settings(verb: str, loaded: Loaded, attack: str | None, steps: Any) -> list[str]:
    """Settings that replace the attack list by `attack` and give `steps` to every attack that takes steps."""
    from robustcli import registry

    settings: list[str] = []
    specs = (
        {"adversary": loaded.config.adversary}
        if verb == "train"
        else {f"attacks.{k}": spec for k, spec in enumerate(loaded.config.attacks)}
    )
    if attack is not None and verb != "train":
        names = [name.strip() for name in attack.split(",")]
        settings.append(_list_of(attack))
        taken = {f"attacks.{k}": name for k, name in enumerate(names)}
    else:
        taken = {path: spec.name for path, spec in specs.items()}
    if steps is not None:
        able = [
            path
            for path, name in taken.items()
            if name in registry.attacks and "steps" in registry.parameters(registry.attacks.get(name).fn)
        ]
        if not able and not isinstance(steps, int):
            raise UsageError("--steps: none of the attacks takes steps")
        settings += [f"{path}.steps={steps}" for path in able]
    if (
        verb == "train"
        and steps == _SMOKE_STEPS
        and "steps" in registry.parameters(registry.attacks.get(loaded.config.train.val_attack.name).fn)
    ):
        settings.append(f"train.val_attack.steps={steps}")
    return settings


def _list_of(attack: str) -> str:
    """--attack as a setting."""
    return "attacks=[" + ", ".join(_spec_of(name.strip()) for name in attack.split(",")) + "]"


def _spec_of(name: str) -> str:
    """`autoattack:rapid` is the ensemble's version; any other name is its own."""
    from robustcli import registry

    ensemble, colon, version = name.partition(":")
    if colon and ensemble in registry.ensembles:
        return f"{{name: {ensemble}, version: {version}}}"
    return f'{{name: "{name}"}}'


def _is_assignment(word: str) -> bool:
    """key=value, where key looks like a dotted path; a file name with "=" in a folder is still a file."""
    key, equals, _ = word.partition("=")
    return (
        bool(equals) and "/" not in key and key.replace(".", "").replace("_", "").replace("-", "").isalnum()
    )
