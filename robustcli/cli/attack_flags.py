"""--attack and --steps as settings of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.config.load import Loaded


def attack_list(attack: str) -> str:
    """`--attack fgsm,pgd` as the setting `attacks=[...]`."""
    return f"attacks=[{', '.join(map(_spec, _names(attack)))}]"


def _names(attack: str) -> list[str]:
    return [name.strip() for name in attack.split(",")]


def _spec(name: str) -> str:
    """`autoattack:rapid` is the ensemble's version; any other name is its own."""
    from robustcli import registry

    ensemble, colon, version = name.partition(":")
    if colon and ensemble in registry.ensembles:
        return f"{{name: {ensemble}, version: {version}}}"
    return f'{{name: "{name}"}}'


def adversary(loaded: Loaded) -> dict[str, str]:
    """Dotted key -> name of the attack that training runs against."""
    return {"adversary": loaded.config.adversary.name}


def measured_attacks(loaded: Loaded, attack: str | None) -> dict[str, str]:
    """Dotted key -> name of each attack that measures: those of --attack, else the configuration's."""
    names = [spec.name for spec in loaded.config.attacks]
    if attack is not None:
        names = _names(attack)
    return {f"attacks.{k}": name for k, name in enumerate(names)}


def given_steps(attacks: Mapping[str, str], steps: str) -> list[str]:
    """--steps for every attack that takes steps. Raises UsageError when none does."""
    settings = step_settings(attacks, steps)
    if not settings:
        names = ", ".join(dict.fromkeys(attacks.values())) or "none"
        raise UsageError(
            f"--steps: none of the attacks takes steps: {names}",
            where=", ".join(attacks),
            hint="choose one that does, such as pgd, or leave --steps out",
        )
    return settings


def step_settings(attacks: Mapping[str, str], steps: str | int) -> list[str]:
    """The setting `steps` of every attack that takes steps. `attacks`: dotted key -> name."""
    return [f"{key}.steps={steps}" for key, name in attacks.items() if takes_steps(name)]


def takes_steps(attack: str) -> bool:
    """Whether a registered attack has the parameter `steps`."""
    from robustcli import registry

    known = registry.attacks
    return attack in known and "steps" in registry.parameters(known.get(attack).fn)
