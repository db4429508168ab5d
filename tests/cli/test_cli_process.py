"""The program as a user starts it: entry point, help, closed pipes, an odd environment."""

import json
import os
import subprocess
import sys
import time

import pytest

from robustcli.cli import app, flags
from robustcli.cli.main import run

PROGRAM = [sys.executable, "-m", "robustcli"]
VERBS = [*app.VERBS, "config", "guard"]


def start(*argv, cwd=None, env=None, **more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROBUSTCLI_")} | (env or {})
    return subprocess.run(
        [*PROGRAM, *argv], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, **more
    )


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["eval", "--help"], ["config", "show", "--help"]),
        *(pytest.param([verb, "--help"], marks=pytest.mark.slow) for verb in VERBS if verb != "eval"),
    ],
    ids=" ".join,
)
def test_help_ends_with_two_examples(argv):
    answer = start(*argv)
    assert answer.returncode == 0 and answer.stderr == ""
    assert "Examples" in answer.stdout and answer.stdout.count("robustcli ") >= 3


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_no_heavy_package(verb):
    code = (
        "import sys; from robustcli.cli.main import run; run(%r); "
        "heavy = {'torch', 'torchvision', 'scipy', 'sklearn', 'matplotlib', 'numpy'}; "
        "bad = sorted(heavy & set(sys.modules)); print('HEAVY', bad)"
    ) % ([verb, "--help"] if verb else ["--help"])
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "HEAVY []" in answer.stdout, answer.stdout[-300:]


def test_version_and_import_are_light():
    assert start("--version").stdout.startswith("robustcli 0.")
    code = "import sys, robustcli; print('torch' in sys.modules, robustcli.__version__)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert answer.stdout.startswith("False 0.")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--epz", "1"], "--epz"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "a.yaml", "b.yaml"], "one CONFIG"),
        (["eval", "--fail-under", "0.5"], "METRIC=VALUE"),
        (["config", "cp", "train/digits"], "Missing argument"),
    ],
)
def test_wrong_command_lines_are_one_line_and_exit_2(argv, words, tmp_path):
    answer = start(*argv, cwd=tmp_path)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error[E-") and answer.stderr.count("\n") == 1 and words in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "env",
    [{"HOME": "/nonexistent", "TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "3"}],
    ids=str,
)
def test_odd_environments(env, tmp_path):
    answer = start("config", "show", "smoke/digits", "--origin", cwd=tmp_path, env=env)
    assert (
        answer.returncode == 0 and "digits" in answer.stdout and "\x1b" not in answer.stdout + answer.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="locales of POSIX")
def test_names_in_any_alphabet_where_no_locale_is_set(tmp_path):
    """A container, and UTF-8 names on its disk."""
    folder = tmp_path / "BÄR 熊"
    folder.mkdir()
    (folder / "cønfig.yaml").write_text("data: {name: fake}\nball: {eps: 0.1}\n", "utf-8")
    name = os.fsencode(str(folder))
    argv = [name + b"/c\xc3\xb8nfig.yaml", b"out=" + name, b"model.weights=" + name + b"/\xc3\x84.pt"]
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answer = start("config", "show", *argv, "--json", cwd=folder, env=env)
    assert answer.returncode == 0 and answer.stderr == ""
    shown = json.loads(answer.stdout)["config"]
    assert shown["out"] == str(folder) and shown["model"]["weights"] == f"{folder}/Ä.pt"


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
@pytest.mark.parametrize("kib", [60_000, 400_000])
def test_too_little_address_space_to_load_pytorch(kib, tmp_path):
    """There OpenBLAS exits with 1, numpy raises, C++ aborts."""

    def limited():
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1024 * kib, 1024 * kib))

    answer = start("eval", "smoke/digits", cwd=tmp_path, preexec_fn=limited)
    assert answer.returncode == 6 and answer.stderr.startswith("error[E-OOM]: ")
    assert "address space" in answer.stderr and answer.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_reader_that_goes_away_is_no_failure_and_a_full_disk_is():
    gone = subprocess.run(
        f"{sys.executable} -m robustcli config schema | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert gone.stderr == "" and len(gone.stdout) == 10
    with open("/dev/full", "w") as full:
        answer = subprocess.run(
            [*PROGRAM, "config", "schema"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert answer.returncode == 6 and "E-DISK" in answer.stderr


def test_an_interrupt_during_import_is_one_line(tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "eval", "smoke/digits"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)
    process.send_signal(2)
    _, err = process.communicate(timeout=150)
    assert process.returncode in (0, 130) and "Traceback" not in err


def test_a_flag_of_one_verb_does_not_take_a_word_that_has_a_meaning(monkeypatch):
    """What the writer of a verb is told: its own flags are added, and shared words keep their meaning."""
    monkeypatch.setattr(flags, "FLAGS", dict(flags.FLAGS))
    assert flags.add_flag("of_this_test", flags.Flag("Nothing.", kind="switch")) == "of_this_test"
    assert flags.spellings("of_this_test") == ("--of-this-test",)
    with pytest.raises(ValueError, match="'steps' is taken"):
        flags.add_flag("steps", flags.Flag("Something else."))


def test_log_settings_that_pytorch_refuses_are_the_users(monkeypatch, capsys):
    def imported():
        raise ValueError("\nInvalid log settings: nonsense, must be a comma separated list")

    monkeypatch.setattr("robustcli.cli.app.build", lambda: lambda **options: imported())
    monkeypatch.setenv("TORCH_LOGS", "nonsense")
    assert run(["train", "smoke/digits"]) == 2
    assert capsys.readouterr().err.startswith("error[E-USAGE]: TORCH_LOGS='nonsense'")
