"""What verbs share: how options name lists and policies, and results on stdout as a path or as JSON."""

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roboalign.sdk.evaluation import PolicyRef
    from roboalign.sdk.evaluation.latency import LatencyProfile
    from roboalign.sdk.thinking import Thinking

__all__ = [
    "BACKEND_HELP",
    "MAX_AGE_HELP",
    "POLICY_HELP",
    "RECALL_HELP",
    "THINKING_HELP",
    "parse_names",
    "parse_pairs",
    "policy_ref",
    "print_note",
    "print_result",
    "print_wrapped",
    "require_file_target",
    "require_real_time",
    "thinking_of",
]

POLICY_HELP = "Bundle, checkpoint or run folder; ws://host:port; module:name or file.py:name; expert; random."
"""Who can act, for the verbs that take a policy."""

BACKEND_HELP = "What runs a bundle: auto, cpu, tensorrt, onnx-cuda, onnx-tensorrt, torch; never another in its place."
"""For the verbs that load a bundle."""


THINKING_HELP = "When to think: off, before_every_chunk, or beside the actions, which use the newest finished thought."
"""For the verbs that let a policy act."""

MAX_AGE_HELP = "Beside: seconds after which the picture behind a thought is too old."
"""For the same verbs."""

RECALL_HELP = "Beside: do not read a thought again behind each new picture."
"""For the same verbs."""


def parse_names(text: str) -> tuple[str, ...]:
    """Returns the names in a comma-separated option; raises ConfigError when it was given without a name."""
    from roboalign.sdk.errors import ConfigError

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ConfigError(f"found no name in {text!r}, expected names separated by commas")
    return names


def parse_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Returns the values of `NAME=VALUE` options by name; raises ConfigError for what is no pair, or a second value."""
    from roboalign.sdk.errors import ConfigError

    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value or name in pairs:
            raise ConfigError(f"found {text!r}, expected NAME=VALUE, each name once")
        pairs[name] = value
    return pairs


def require_file_target(out: Path, suffix: str | None = None) -> None:
    """Raises ConfigError when `out` cannot be the file to write: a folder, or a name that ends otherwise."""
    from roboalign.sdk.errors import ConfigError

    if out.is_dir():
        raise ConfigError(f"{out} is a folder, expected the name of a file to write")
    if suffix is not None and out.suffix.lower() != suffix:
        raise ConfigError(f"out is {str(out)!r}, only {suffix} can be written; give a name that ends in {suffix}")


def require_real_time(options: Mapping[str, object]) -> None:
    """Raises ConfigError when one of these options was given, where time is simulated and there is no such thing."""
    from roboalign.sdk.errors import ConfigError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)} is of a run on a robot or in real time; add --robot or --real-time")


def thinking_of(mode: str | None, *, think: bool, max_age_s: float | None, recalls: bool) -> "Thinking | None":
    """Returns what `--thinking`, `--think/--no-think` and the options for `beside` mean together; None goes by `think`.

    Raises:
        ConfigError: They contradict one another, or there is no such mode.
    """
    from roboalign.sdk.errors import ConfigError, unknown_name
    from roboalign.sdk.thinking import THINKING_MODES, Thinking, resolve_thinking

    if max_age_s is not None and mode != "beside":
        raise ConfigError("--max-thought-age is the age of thoughts beside the actions; give --thinking beside with it")
    if recalls and mode != "beside":
        raise ConfigError("--recall-thoughts is for thoughts beside the actions; give --thinking beside with it")
    if mode is None:
        return None
    if mode not in THINKING_MODES:
        raise ConfigError(unknown_name("thinking mode", mode, THINKING_MODES))
    age = {} if max_age_s is None else {"max_age_s": max_age_s}
    return resolve_thinking(think, Thinking(mode=mode, recalls=recalls, **age))  # type: ignore[arg-type]  # checked above


def policy_ref(
    policy: str | None,
    *,
    actions: str,
    think: bool,
    backend: str = "auto",
    is_shuffled: bool = False,
    is_blind: bool = False,
    has_shuffled_thoughts: bool = False,
    thought_age: int = 0,
    thinking: "Thinking | None" = None,
    latency: "LatencyProfile | None" = None,
    chunks: str | None = None,
) -> "PolicyRef":
    """Returns the policy that an argument names: a control, folder, address or code; None is the shipped bundle.

    Raises:
        ConfigError: There is no such policy, or how it acts was chosen where it was served.
    """
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.evaluation import named_policy

    ref = named_policy(
        policy,
        actions=actions,
        think=think,
        is_shuffled=is_shuffled,
        is_blind=is_blind,
        has_shuffled_thoughts=has_shuffled_thoughts,
        thought_age=thought_age,
        backend=backend,
        thinking=thinking,
        latency=latency,
        chunks=chunks,
    )
    if ref.kind == "remote" and (actions != "flow" or not think or backend != "auto"):
        raise ConfigError(
            f"how {policy} acts was chosen where it is served; give --actions, --no-think and --backend there"
        )
    return ref


def print_result(result: object, *, as_json: bool, **more: object) -> None:
    """Prints what a verb made.

    Args:
        result: what to print as one line of plain text, usually the path that was written.
        as_json: print one JSON object instead: `result` under the name `path` if it is a path, else under `result`.
        more: further fields of the JSON object; never printed as text.
    """
    if not as_json:
        print(result)
        return
    name = "path" if isinstance(result, Path) else "result"
    print(json.dumps({name: _plain(result), **{key: _plain(value) for key, value in more.items()}}))


def print_note(text: str) -> None:
    """Prints a line for the reader on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_wrapped(text: str) -> None:
    """Prints a long line for the reader on stderr, wrapped to the terminal's width; names in it stay whole."""
    width = shutil.get_terminal_size().columns
    options = {"break_long_words": False, "break_on_hyphens": False}
    print_note(textwrap.fill(text, width, subsequent_indent="  ", **options))  # type: ignore[arg-type]  # two booleans


def _plain(value: object) -> object:
    """The value as JSON's own types; numpy scalars and arrays, paths and dataclasses included."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    as_list = getattr(value, "tolist", None)
    return as_list() if callable(as_list) else str(value)
