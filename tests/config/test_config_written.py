"""What a resolved configuration says: every number of its methods, in a file that runs again unchanged."""

import inspect
from dataclasses import replace

import pytest

from robustcli.config.bind import Registries, bind_spec
from robustcli.config.load import load_config
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.config.view import show_rows
from robustcli.config.written import _SPECS, filled, resolved_yaml, written_out
from robustcli.errors import UsageError
from robustcli.jobs.resuming import check_same_experiment
from robustcli.jobs.stored import Stored
from robustcli.registry import parameters
from robustcli.training.trainplan import Progress

REGISTRIES = Registries.discover()
METHODS = [(path, kind, name) for path, kind in _SPECS.items() for name in getattr(REGISTRIES, kind).names()]


@pytest.mark.parametrize(
    ("path", "kind", "name"), METHODS, ids=[f"{kind}-{name}" for _, kind, name in METHODS]
)
def test_every_default_is_written_and_means_the_same_again(path, kind, name, tmp_path):
    registry, file = getattr(REGISTRIES, kind), tmp_path / "config.resolved.yaml"
    text = f"{{name: {name}}}"
    for key in reversed(path):
        text = f"{{{key}: {text}}}"
    (tmp_path / "own.yaml").write_text(text)
    config = load_config(tmp_path / "own.yaml").config
    file.write_text(resolved_yaml(config))
    again = load_config(file).config
    assert resolved_yaml(again) == file.read_text()
    spec = again
    for key in path:
        spec = getattr(spec, key)
    defaults = {p.name: _listed(p.default) for p in parameters(registry.get(name).fn).values()}
    assert inspect.Parameter.empty not in defaults.values()
    bound = bind_spec(registry, Spec.of(spec.name, **spec.params), ".".join(path)).params
    given = {key: _listed(value) for key, value in bound.items()}
    assert given == defaults or {k: v for k, v in given.items() if v != defaults[k]} == {}


def _listed(value):
    """A tuple and a list of the same values are one default."""
    return list(value) if isinstance(value, tuple) else value


def test_the_learning_rate_stands_in_what_is_shown(tmp_path):
    loaded = load_config(None)
    assert "    lr: 0.1\n" in resolved_yaml(loaded.config)
    shown = {row.key: (row.value, row.origin) for row in show_rows(loaded)}
    assert shown["train.optimizer.lr"] == ("0.1", "default of sgd")
    assert shown["train.optimizer.name"] == ("sgd", "default") and "model.widths.0" in shown


def test_a_name_that_is_not_ours_and_a_users_network_stay_as_they_are():
    for name in ("run:runs/train/x", "weights.safetensors"):
        tree = Config.model_validate({"model": {"name": name}}).model_dump(mode="json")
        assert written_out(tree)["model"] == tree["model"]
        assert not any(key.startswith("model.") for key in filled(tree))
    plugin = {"name": "small_cnn", "plugin": {"factory": "net"}}
    assert written_out({"model": plugin})["model"] == plugin


def test_a_run_that_did_not_write_its_defaults_is_resumed_and_a_changed_one_is_not():
    plain = Config().model_dump(mode="json")
    now = written_out(plain)
    stored = Stored(plain, "d", Progress())
    check_same_experiment(stored, now, "d", (), pytest.fail)
    check_same_experiment(replace(stored, config=now), now, "d", (), pytest.fail)
    faster = {**now, "train": {**now["train"], "optimizer": {**now["train"]["optimizer"], "lr": 0.2}}}
    with pytest.raises(UsageError, match=r"train.optimizer.lr: 0.2 \(the run has 0.1\)"):
        check_same_experiment(stored, faster, "d", (), pytest.fail)
