"""`python -m srlm_fast.export WHAT ...`: models, rows and answers in the forms that others read.

Exit status as `srlm_fast.run` has it. Only the standard library is imported before the options have
been read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from srlm_fast.export import alpaca_eval, model, mt_bench, pairs, reward_bench, sft
from srlm_fast.export.command import PROGRAM
from srlm_fast.export.made import make
from srlm_fast.options import nearest
from srlm_fast.records import InputError
from srlm_fast.run import DONE, end_of

COMMANDS = {
    module.COMMAND.name: module.COMMAND
    for module in (model, pairs, sft, alpaca_eval, mt_bench, reward_bench)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(usage())
        return DONE
    if name not in COMMANDS:
        near = nearest(name, list(COMMANDS))
        hint = f"did you mean {near}?" if near else f"wanted {', '.join(COMMANDS)}"
        raise InputError(f"{name}: nothing that can be exported; {hint}")
    wanted = COMMANDS[name]
    return make(wanted, wanted.read(rest))


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {each.name:<{width}}  {each.help}" for each in COMMANDS.values()]
    head = [f"usage: {PROGRAM} WHAT ...", "", "Standard formats out of a run:", ""]
    return "\n".join([*head, *lines, "", f"{PROGRAM} WHAT --help lists the options of each."])


if __name__ == "__main__":
    sys.exit(main())
