"""`python -m robustcli`, hence `torchrun -m robustcli train …`."""

from robustcli.cli.main import main

if __name__ == "__main__":
    main()
