"""Calls that turn data into code have no place in robustcli; one confined file may call torch.load."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "robustcli"
LOADER = "store/convert.py"
#: Names pickle.UnpicklingError in an except clause, and nothing else of that module.
EXCEPTION_ONLY = "models/torchvision_weights.py"
BANNED = {
    "torch.load": r"\btorch\s*\.\s*load\s*\(|from torch import [^\n]*\bload\b|"
    r"from torch\.serialization import",
    "pickle": r"\b(c?pickle|dill|cloudpickle|joblib|marshal|shelve)\b",
    "yaml.load": r"\byaml\s*\.\s*(load|load_all|unsafe_load|full_load|unsafe_load_all|full_load_all)\s*\(",
    "eval": r"(?<![.\w])eval\s*\(",
    "exec": r"(?<![.\w])exec\s*\(",
    "shell=True": r"\bshell\s*=\s*True\b",
    "os.system": r"\bos\s*\.\s*(system|popen)\s*\(",
    "extractall": r"\bextractall\s*\(",
    "torch.hub": r"\bhub\s*\.\s*(load|load_state_dict_from_url)\s*\(",
    "torch.jit.load": r"\bjit\s*\.\s*load\s*\(",
    "weights_only=False": r"\bweights_only\s*=\s*False\b",
    "allow_pickle=True": r"\ballow_pickle\s*=\s*True\b",
    "dcp": r"\bdistributed\s*\.\s*checkpoint\b",
}


def code_of(text: str) -> str:
    """The source without comments and strings: a docstring may speak of what the code must not do."""
    lines = text.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            (row, column), (end_row, end_column) = token.start, token.end
            lines[row - 1 : end_row] = [
                lines[row - 1][:column]
                + ("''" if token.type == tokenize.STRING else "")
                + lines[end_row - 1][end_column:]
            ]
    return "".join(lines)


def violations(text: str) -> list[str]:
    code = code_of(text)
    return [name for name, pattern in BANNED.items() if re.search(pattern, code)]


def test_no_banned_call_in_the_package() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): violations(path.read_text("utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(found) > 15
    assert found.pop(LOADER) == ["torch.load"]
    allowed = {"pickle"} if EXCEPTION_ONLY in found else set()
    assert set(found.pop(EXCEPTION_ONLY, [])) <= allowed
    assert {name: names for name, names in found.items() if names} == {}


def test_the_exception_class_is_all_that_is_used() -> None:
    path = PACKAGE / EXCEPTION_ONLY
    code = code_of(path.read_text("utf-8")) if path.exists() else ""
    assert set(re.findall(r"[^\n]*\bpickle\b(?:\.\w+)?", code)) <= {
        "import pickle",
        "    except (pickle.UnpicklingError",
    }


def test_the_one_loader_is_weights_only() -> None:
    code = code_of((PACKAGE / LOADER).read_text("utf-8"))
    calls = re.findall(r"torch\.load\([^)]*\)", code)
    assert len(calls) == 1 and "weights_only=True" in calls[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("torch.load(x)", "torch.load"),
        ("torch . load (x)", "torch.load"),
        ("import pickle", "pickle"),
        ("yaml.load(f)", "yaml.load"),
        ("x = eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("run(a, shell=True)", "shell=True"),
        ("tar.extractall(p)", "extractall"),
        ("np.load(f, allow_pickle=True)", "allow_pickle=True"),
    ],
)
def test_the_search_finds(text: str, name: str) -> None:
    assert violations(f"def f():\n    {text}\n") == [name]


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "# eval(x)",
        "s = 'import pickle'",
        "allow_pickle = False",
        "retrieval(x)",
        "yaml.safe_load(f)",
        '"""torch.load(x)\n"""',
    ],
)
def test_the_search_does_not_cry_wolf(text: str) -> None:
    assert violations(f"{text}\n") == []
