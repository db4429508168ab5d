# Not built yet: linted with hadolint, and its pip step resolved by tests. Report the first build, good or bad, in an issue.
# One environment for research, tests and deployment:
#   docker build -t robustcli .                                    # --build-arg EXTRAS=guard,serve for deployment alone
#   docker run --rm --gpus all -v "$PWD/runs:/home/robust/runs" robustcli demo
#   docker run --rm -v "$PWD:/source:ro" -w /source --entrypoint python robustcli -m pytest -q -p no:cacheprovider
#   docker compose -f deploy/compose.yaml up                       # `guard serve`
FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime

# Empty: what `make` installs.
ARG EXTRAS=
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Newer base images use the system's Python, where pip asks for this leave.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /opt/robustcli
COPY pyproject.toml README.md LICENSE Makefile constraints.txt ./
COPY robustcli robustcli
COPY configs configs
# image.txt: torch and torchvision as the base image has them, which match its CUDA; all else as it was proved.
RUN python -m pip list --format=freeze | grep -E '^(torch|torchvision)==' > image.txt \
    && grep -vE '^(#|torch==|torchvision==|triton==|nvidia-|cuda-)' constraints.txt >> image.txt \
    && extras="${EXTRAS:-$(sed -n 's/^EXTRAS ?= //p' Makefile)}" \
    && python -m pip install -c image.txt ".[${extras:?}]" \
    && python -c 'import torch, torchvision' \
    && robustcli --version

# A new volume takes the owner of the folder that it covers.
RUN useradd --create-home --uid 10001 robust \
    && install -d -o robust -g robust /home/robust/runs /evidence
USER 10001
WORKDIR /home/robust
ENTRYPOINT ["robustcli"]
CMD ["--help"]
