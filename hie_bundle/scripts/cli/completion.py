"""Completion of the command's words for shells, made from the configs."""

from __future__ import annotations

from ..runtime.errors import choose
from ..runtime.mixins import CONFIGS
from .workflows import EXTRA, WORKFLOWS, values_of

__all__ = ["completion", "words_of"]

SEGMENT = (
    "output", "weights", "recipe", "probabilities", "overlay", "report", "extension", "json", "quiet", "openvino",
    "bids", "shard",
    "device", "threshold", "flips", "help",
)  # fmt: skip
BASH = """_hie_bundle() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  local words="{commands}"
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
      *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _hie_bundle hie-bundle
"""


def words_of(command: str) -> list[str]:
    """The options of a command."""
    names = list(SEGMENT) if command == "segment" else []
    if command in WORKFLOWS:
        values = [value for stem in WORKFLOWS[command].configs for value in values_of(CONFIGS / f"{stem}.yaml")]
        own = list(EXTRA) if "train" in WORKFLOWS[command].configs else ["config_file"]
        names = [*own, *dict.fromkeys(v.name for v in values if v.default and "#" not in v.name), "help"]
    return [f"--{name}" for name in names]


def completion(shell: str = "bash") -> None:
    """Print the completion for a shell; ``eval "$(hie-bundle completion bash)"`` in its start-up file takes it.

    Args:
        shell: bash, zsh or fish.

    Raises:
        UserError: when the shell is another.
    """
    commands = ["segment", "challenge", *WORKFLOWS, "doctor", "completion"]
    known = {command: words for command in commands if (words := words_of(command))}
    cases = "\n".join(f'      {command}) words="{" ".join(words)}" ;;' for command, words in known.items())
    bash = BASH.format(commands=" ".join(commands), cases=cases)
    fish = [f"complete -c hie-bundle -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
    for command, words in known.items():
        where = f"complete -c hie-bundle -n '__fish_seen_subcommand_from {command}'"
        fish += [f"{where} -l {word.removeprefix('--')}" for word in words]
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" + bash
    print(choose({"bash": bash, "zsh": zsh, "fish": "\n".join(fish) + "\n"}, shell, "shell"), end="")
