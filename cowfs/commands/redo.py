"""Takes the last 'cowfs undo' of the volume at DIR back.

A new rollback ends what can be redone. What is there now is kept in a guard snapshot. Files that are open keep their
handles, which answer ESTALE from then on.
"""

import argparse

from cowfs.client import Client
from cowfs.commands.undo import add_arguments, step

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    return step(arguments, Client.redo)
