"""--attack and --steps as settings of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.config.load import Loaded


def attack_list(attack: str) -> str:
    """`--attack fgsm,pgd:steps=20:restarts=2` as the setting `attacks=[...]`."""
    return f"attacks=[{', '.join(map(_spec, _names(attack)))}]"


def _names(attack: str) -> list[str]:
    """What stands between commas; those inside brackets belong to a list, as in transforms=[di,ti]."""
    return [name.strip() for name in re.split(r",(?![^\[]*\])", attack)]


def _spec(name: str) -> str:
    """`pgd:steps=20` sets a parameter, `autoattack:rapid` the version, `patch:DIR` the file.

    Any other name is whole.
    """
    from robustcli import registry

    bare, *given = name.split(":")
    if given and "=" not in given[0] and bare in registry.ensembles:
        given[0] = f"version={given[0]}"
    if given and "=" not in given[0] and _reads_file(bare):
        given[0] = f"file={given[0]}"
    if not given or not all("=" in word for word in given):
        return f'{{name: "{name}"}}'
    pairs = (word.partition("=") for word in given)
    return f'{{name: "{bare}", {", ".join(f"{key}: {value}" for key, _, value in pairs)}}}'


def _bare(name: str) -> str:
    """The name of an attack without its parameters."""
    bare, _, given = name.partition(":")
    return bare if "=" in given or (given and _reads_file(bare)) else name


def _reads_file(attack: str) -> bool:
    """Whether a registered attack has the parameter `file`."""
    from robustcli import registry

    known = registry.attacks
    return attack in known and "file" in registry.parameters(known.get(attack).fn)


def adversary(loaded: Loaded) -> dict[str, str]:
    """Dotted key -> name of the attack that training runs against."""
    return {"adversary": loaded.config.adversary.name}


def measured_attacks(loaded: Loaded, attack: str | None) -> dict[str, str]:
    """Dotted key -> name of each attack that measures: those of --attack, else the configuration's."""
    names = [spec.name for spec in loaded.config.attacks]
    if attack is not None:
        names = [_bare(name) for name in _names(attack)]
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
