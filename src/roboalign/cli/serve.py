"""`roboalign serve`: a policy over a websocket, for `roboalign eval ws://...`, openpi's client, vla-eval and robots."""

import os
import signal
from types import FrameType
from typing import Annotated

import typer

from roboalign.cli.output import (
    BACKEND_HELP,
    MAX_AGE_HELP,
    RECALL_HELP,
    THINKING_HELP,
    policy_ref,
    print_note,
    thinking_of,
)

__all__ = ["serve"]


def serve(
    policy: Annotated[
        str | None,
        typer.Argument(
            help="Bundle, checkpoint or run folder; module:name or file.py:name; random.",
            show_default="the shipped bundle",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port; 0 lets the system choose one.")] = 8350,
    host: Annotated[
        str, typer.Option("--host", help="Address; 0.0.0.0 lets the network in, with ROBOALIGN_TOKEN.")
    ] = "127.0.0.1",
    robot: Annotated[str, typer.Option("--robot", help="Arm whose limits the policy is told.")] = "panda",
    sessions: Annotated[int, typer.Option("--sessions", help="Clients at a time; each gets a copy.")] = 4,
    max_rate: Annotated[float, typer.Option("--max-rate", help="Messages of a client in a second.")] = 200.0,
    actions: Annotated[
        str, typer.Option("--actions", help="Who acts: flow (the head) or fast (action tokens).")
    ] = "flow",
    think: Annotated[bool, typer.Option("--think/--no-think", help="Write a thought before each chunk.")] = True,
    thinking: Annotated[
        str | None, typer.Option("--thinking", help=THINKING_HELP, show_default="as --think says")
    ] = None,
    max_thought_age: Annotated[
        float | None, typer.Option("--max-thought-age", help=MAX_AGE_HELP, show_default="2.0")
    ] = None,
    recall_thoughts: Annotated[bool, typer.Option("--recall-thoughts", help=RECALL_HELP)] = False,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND_HELP)] = "auto",
) -> None:
    """Serve a policy over a websocket (openpi's protocol, vla-eval's at /vla-eval) until Ctrl-C.

    It answers this machine only; for others, set ROBOALIGN_TOKEN here and there. Nothing is encrypted.
    """
    from roboalign.sdk.serving.server import PolicyServer, ServerConfig
    from roboalign.sdk.serving.wire import TOKEN_VARIABLE
    from roboalign.sdk.sim.robots import find_robot

    chosen = thinking_of(thinking, think=think, max_age_s=max_thought_age, recalls=recall_thoughts)
    ref = policy_ref(policy, actions=actions, think=think, backend=backend, thinking=chosen)
    config = ServerConfig(
        host=host,
        port=port,
        max_sessions=sessions,
        max_rate_hz=max_rate,
        token=os.environ.get(TOKEN_VARIABLE) or None,
    )
    spec = find_robot(robot).spec(96)
    server = PolicyServer(lambda: ref.open_alone(spec), ref.describe(), spec, config).open()
    # SIGINT too: a shell makes a background job ignore it, and then nothing but a kill would stop the server.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)

    def tell() -> None:
        print(server.url, flush=True)
        print_note(f"serving {ref.name}; Ctrl-C stops it")

    try:
        server.serve(tell)
    except KeyboardInterrupt:
        print_note("stopped")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
