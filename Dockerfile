# Not built yet: checked with a linter (hadolint) only. Report the first build, good or bad, in an issue.
#   docker build -t robustcli .
#   docker run --rm --gpus all -v "$PWD/runs:/home/robust/runs" robustcli demo
FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Newer base images use the system's Python, where pip asks for this leave.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1

WORKDIR /opt/robustcli
COPY pyproject.toml README.md LICENSE ./
COPY robustcli robustcli
COPY configs configs
# The image's torch and torchvision match its CUDA: their exact versions are the constraint, so pip keeps them.
RUN python -m pip list --format=freeze | grep -E '^(torch|torchvision)==' > /tmp/image.txt \
    && python -m pip install -c /tmp/image.txt . \
    && python -c 'import torch, torchvision' \
    && rm /tmp/image.txt

RUN useradd --create-home --uid 10001 robust && install -d -o robust -g robust /home/robust/runs
USER 10001
WORKDIR /home/robust
ENTRYPOINT ["robustcli"]
CMD ["--help"]
