"""The files under deploy/ci/: their commands run as a runner runs them, with a pip that installs nothing."""

import http.server
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import yaml
from gated import answers, write

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "deploy/ci/action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "deploy/ci/gitlab.yml").read_text())[".robustness-gate"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Run a script in a shell of a runner: `python` and `robustcli` are those of this test."""
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    stub = (
        f'case "$*" in "-m pip install"*) echo "$@" >> {tools}/pip.txt;; *) exec {sys.executable} "$@";; esac'
    )
    (tools / "python").write_text(f"#!/bin/sh\n{stub}\n")
    (tools / "robustcli").write_text(f'#!/bin/sh\nexec {sys.executable} -m robustcli "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "CI_"))}
    common = {
        **kept,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def run(text, options, env):
        Path("step.sh").write_text(text)
        return subprocess.run(
            ["bash", *options, "step.sh"], env={**common, **env}, capture_output=True, text=True, timeout=120
        )

    return run


def test_actions_are_pinned_by_hash():
    text = (ROOT / "deploy/ci/action.yml").read_text()
    used = re.findall(r"uses: (.*)", text)
    assert len(used) == 3 and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[0-9.]+", use) for use in used)


def test_the_action_of_github_posts_everything_and_fails(shell, tmp_path):
    write("run", samples=answers(1000, 300))
    Path("gate.yaml").write_text("thresholds:\n  robust_acc: {min: 0.45}\n")
    inputs = {name: given.get("default", "") for name, given in ACTION["inputs"].items()}
    inputs |= {
        "source": "run",
        "thresholds": "gate.yaml",
        "arguments": "-q\n--set thresholds.clean_acc.min=0.5\n",  # a block of YAML has lines
    }
    runner = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_OUTPUT": str(tmp_path / "output.txt"),
        "GITHUB_WORKSPACE": str(tmp_path),
        "GITHUB_ACTION_PATH": str(ROOT / "deploy/ci"),
    }
    failed, done, said = False, [], ""
    for step in ACTION["runs"]["steps"]:
        always = str(step.get("if", "")).startswith("always()")
        if failed and not always:
            continue
        done.append(step.get("name", step.get("uses", "")).partition("@")[0])
        if "run" in step:
            env = {name: filled(text, inputs) for name, text in step["env"].items()}
            answer = shell(step["run"], ("--noprofile", "--norc", "-eo", "pipefail"), {**runner, **env})
            failed, said = failed or answer.returncode != 0, said + answer.stderr
    uploads = ["actions/upload-artifact", "github/codeql-action/upload-sarif"]
    assert done == ["actions/setup-python", "Install", "Gate", *uploads]
    assert (tmp_path / "tools/pip.txt").read_text().split() == [
        *("-m", "pip", "install", "-c", f"{ROOT}/deploy/ci/../../constraints.txt", f"{ROOT}/deploy/ci/../.."),
    ]
    assert failed and "exit-code=1" in Path("output.txt").read_text()
    assert "::error file=gate.yaml,line=2,title=gate%3A robust_acc::FAIL" in said
    left = {str(path.relative_to("robustness")) for path in Path("robustness").rglob("*") if path.is_file()}
    assert {"junit.xml", "gate.sarif", "badge.json", "report/report.html", "report/gate.md"} <= left
    summary = Path("summary.md").read_text()
    assert summary.startswith("## ❌ Robustness gate: FAIL\n") and "# run: robustness report" in summary
    assert "clean_acc >= 0.5" in summary


def filled(text, inputs):
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: inputs[match[1]], text)


class Notes(http.server.BaseHTTPRequestHandler):
    """The part of GitLab's API that takes a note."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        note = urllib.parse.parse_qs(body)["body"][0]
        self.server.found.append((self.path, self.headers["PRIVATE-TOKEN"], note))
        self.send_response(201)
        self.end_headers()

    def log_message(self, *args):
        pass


def test_the_job_of_gitlab_notes_what_kept_it_from_a_verdict(shell, tmp_path):
    write("run", samples=answers(1000, 900))
    Path("gate.yaml").write_text("thresholds:\n  robst_acc: {min: 0.45}\n")
    given = {"GATE_SOURCE": "run", "GATE_THRESHOLDS": "gate.yaml", "GATE_ARGUMENTS": "--quiet --strict"}
    server = http.server.HTTPServer(("127.0.0.1", 0), Notes)
    server.found = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    job = {
        **{name: str(value) for name, value in GITLAB["variables"].items()},
        **given,
        "CI_PROJECT_DIR": str(tmp_path),
        "CI_API_V4_URL": f"http://127.0.0.1:{server.server_port}/api/v4",
        "CI_PROJECT_ID": "7",
        "CI_MERGE_REQUEST_IID": "3",
        "GATE_TOKEN": "secret",
    }
    try:
        script = "\n".join([*GITLAB["before_script"], *GITLAB["script"]])
        answer = shell(script, ("-eo", "pipefail"), job)
        after = shell("\n".join(GITLAB["after_script"]), ("-eo", "pipefail"), job)
    finally:
        server.shutdown()
        server.server_close()
    assert answer.returncode == 2 and "gate.yaml:2: thresholds.robst_acc: unknown metric" in answer.stderr
    assert (tmp_path / "tools/pip.txt").read_text().split() == ["-m", "pip", "install", "robustcli"]
    assert (
        "<error "
        in Path(GITLAB["artifacts"]["reports"]["junit"].replace("$GATE_OUTPUT", "robustness")).read_text()
    )
    assert after.returncode == 0, after.stderr
    ((path, token, note),) = server.found
    assert path == "/api/v4/projects/7/merge_requests/3/notes" and token == "secret"
    assert note.startswith("## ⚠️ Robustness gate: ERROR\n") and "unknown metric 'robst_acc'" in note
    assert GITLAB["artifacts"]["when"] == "always"
    quiet = shell("\n".join(GITLAB["after_script"]), ("-eo", "pipefail"), {**job, "GATE_TOKEN": ""})
    assert quiet.returncode == 0 and len(server.found) == 1
