"""`pairuni` as a shell calls it."""

import shlex

from pairuni_nb.cli import main


def pairuni(line):
    "The exit code of a command line."
    return main(shlex.split(line))
