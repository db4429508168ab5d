"""What `init` writes; @NAME@ is filled in."""

from __future__ import annotations

CONFIG = """\
# robustcli train robustness.yaml@PLUGIN@
# robustcli gate robustness.yaml@GATED@
# The first trains a robust model, the second says whether it may ship. Every key: `robustcli config schema`.
# Where each value comes from: `robustcli config show robustness.yaml --origin`.
name: robustness
seed: 0

# Images: @FOUND@
# Others: folder:PATH (train/CLASS/*.png and test/CLASS/*.png, or CLASS folders), csv:, npz:, hf:, wds:PATH.
data:
  name: @DATA@@SIZE@
  val_fraction: 0.1  # of the training images chooses the best epoch, where there is no val folder

# The network@NETWORK@
model: {name: @MODEL@}

# The attacker: may change each image by at most eps in this norm, pixels in [0, 1].
ball: {norm: @NORM@, eps: @EPS@}

# Training on attacked images: passes an image and epoch = 2 x steps + 3. A tenth of the time: steps: 1.
objective: {name: madry}
adversary: {name: pgd, steps: 10}
train:
  epochs: 30  # or minutes: 10
  batch_size: @BATCH@
  optimizer: {name: sgd, lr: @RATE@, momentum: 0.9, weight_decay: 5e-4, nesterov: true}
  schedule: {name: one_cycle}
  hooks:
    - {name: ema, decay: 0.995}  # the averaged weights are the model
  grad_clip: 5.0
  val_attack: {name: pgd, steps: 10}

# What `eval` and `gate` attack with; `version: standard` is the one to publish.
attacks:
  - {name: autoattack, version: rapid}

# What `gate` asks. evidence (pull requests): fails when the accuracy is surely lower. prove (releases):
# passes only when it is surely reached. Start from what `robustcli eval` measures, less what you can lose.
thresholds:
  clean_acc: {min: 0.80}
  robust_acc@@NORM@:@EPS@: {min: 0.45, mode: evidence}
"""

GITHUB = """\
# Robustness of the model. `gate` writes its verdict into the summary of the job. It exits with 1 when a
# threshold is missed, with 10 when the evaluation cannot be believed. Pin the actions by hash if you must.
name: robustness
on:
  push:
    branches: [main]
  pull_request:
  workflow_dispatch:
permissions:
  contents: read
env:
  ROBUSTCLI: robustcli  # what pip installs: a version, a wheel, or git+https://...
jobs:
  smoke:  # the whole path made tiny: configuration, data, network, training
    runs-on: ubuntu-24.04
    timeout-minutes: 30
    steps:
@SETUP@@SMOKE@
  gate:@WHEN@
    needs: smoke
    runs-on: ubuntu-24.04
    timeout-minutes: 360
    steps:
@SETUP@@GATE@
      - uses: actions/upload-artifact@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f # v7.0.0
        if: always()
        with:
          name: robustness
          path: |
            runs
            gate.xml
"""
#: How each job begins. Actions are pinned: a tag may come to name other code.
GITHUB_SETUP = """\
      - uses: actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1
        with:
          persist-credentials: false
      - uses: actions/setup-python@5fda3b95a4ea91299a34e894583c3862153e4b97 # v7.0.0
        with:
          python-version: "3.12"
      - run: pip install "$ROBUSTCLI"
"""
GITHUB_STEP = "      - run: @COMMAND@\n"
GITHUB_MANUAL = """  # it trains in full, so only when started by hand; with trained weights: on every push
    if: github.event_name == 'workflow_dispatch'"""

GITLAB = """\
# In .gitlab-ci.yml:
#   include:
#     - local: .gitlab/robustness.yml
.robustness:
  image: python:3.12
  variables:
    ROBUSTCLI: robustcli  # what pip installs: a version, a wheel, or git+https://...
  before_script:
    - pip install "$ROBUSTCLI"

robustness-smoke:  # the whole path made tiny: configuration, data, network, training
  extends: .robustness
  script:
@SMOKE@

robustness-gate:
  extends: .robustness
  needs: [robustness-smoke]@WHEN@
  script:
@GATE@
  artifacts:
    when: always
    paths: [runs]
    reports:
      junit: gate.xml
"""
GITLAB_STEP = "    - @COMMAND@\n"
GITLAB_MANUAL = """
  rules:
    - when: manual  # it trains in full; with trained weights: on every push"""


def filled(text: str, **values: str) -> str:
    """A text with `@NAME@` replaced."""
    for name, value in values.items():
        text = text.replace(f"@{name.upper()}@", value)
    return text
