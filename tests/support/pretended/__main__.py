"""A command of robustcli on a pretended device: python tests/support/pretended VERB ..."""

import sys

from pretended import pretended_cuda
from robustcli.cli.main import run

if __name__ == "__main__":
    with pretended_cuda():
        code = run(sys.argv[1:])
    sys.exit(code)
