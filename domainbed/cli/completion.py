"""`domainbed completion`: commands, flags and files, completed by the shell."""

import argparse

import shtab

from domainbed.cli import COMMANDS, declaration
from domainbed.cli.common import Parser, argument, command

_OF_FILES = ("FILE", "FOLDER", "CONFIG", "FOLDER_OR_CONFIG", "RUN_FOLDER", "PATH")


@command(
    argument("shell", choices=sorted(shtab.SUPPORTED_SHELLS)),
)
def completion(args: argparse.Namespace) -> int:
    """Print a script that completes commands, flags and files.

    bash: `domainbed completion bash > ~/.local/share/bash-completion/completions/domainbed`
    zsh: `domainbed completion zsh > ~/.zfunc/_domainbed`, with ~/.zfunc in $fpath
    fish: `domainbed completion fish > ~/.config/fish/completions/domainbed.fish`
    """
    print(shtab.complete(_all_commands(), args.shell))
    return 0


def _all_commands() -> Parser:
    """A parser that knows all commands, and imports all their modules."""
    whole = Parser(prog="domainbed")
    groups = {"": whole.add_subparsers()}
    for name, (_, about) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group, help=group).add_subparsers()
        parser = groups[group].add_parser(last, help=about)
        declaration(name)(parser)
        for action in parser._actions:
            if action.metavar in _OF_FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return whole
