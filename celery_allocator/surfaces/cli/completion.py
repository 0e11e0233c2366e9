"""The script that teaches a shell to complete ``celery-allocator``."""

from __future__ import annotations

from typing import ClassVar

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from celery_allocator.surfaces.cli.console import json_option, print_json

#: What the console script is called, and the variable by which the shell's script asks it.
PROGRAM, VARIABLE = "celery-allocator", "_CELERY_ALLOCATOR_COMPLETE"


class _Bash(BashComplete):
    """Click's script leaves a URL in the parts that Bash makes of it at each ``:``, and expands ``*`` in words."""

    source_template: ClassVar[str] = r"""%(complete_func)s() {
    local IFS=$'\n' rest=$COMP_LINE lead type value current before i
    local -a words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        lead=${rest%%%%[![:space:]]*}
        rest=${rest#"$lead"}
        if ((i == 0)) || [[ -n $lead ]]; then
            words+=("${COMP_WORDS[i]}")
        else
            words[-1]+=${COMP_WORDS[i]}
        fi
        rest=${rest#"${COMP_WORDS[i]}"}
    done
    current=${words[-1]}
    before=
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        before=${current%%"${current##*:}"}
    fi
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("${value#"$before"}") ;;
        esac
    done < <(
        env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1" 2>/dev/null
    )
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


_SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: str, *, as_json: bool) -> None:
    """Print a script that lets a shell complete commands, options, and names and ids that are in the ledger.

    Bash (4.4 or newer), in ~/.bashrc: `source <(celery-allocator completion bash)`. Zsh, in ~/.zshrc after compinit:
    `source <(celery-allocator completion zsh)`. Fish, once: `celery-allocator completion fish >
    ~/.config/fish/completions/celery-allocator.fish`.
    """
    script = _SHELLS[shell](ctx.command, {}, PROGRAM, VARIABLE).source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)


COMMANDS: tuple[click.Command, ...] = (completion,)
