"""Commands of the CLI in a process that is thrown away."""

import os

from recycler.cli import main


def run_quietly(command):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os._exit(main(command))
