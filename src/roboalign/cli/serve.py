"""`roboalign serve`: a policy over HTTP, for `roboalign eval http://...` and for robots."""

import signal
from types import FrameType
from typing import Annotated

import typer

from roboalign.cli.output import BACKEND_HELP, policy_ref, print_note

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
    host: Annotated[str, typer.Option("--host", help="Address; 0.0.0.0 lets the network in.")] = "127.0.0.1",
    robot: Annotated[str, typer.Option("--robot", help="Arm whose limits the policy is told.")] = "panda",
    sessions: Annotated[int, typer.Option("--sessions", help="Clients at a time; each gets a copy.")] = 4,
    actions: Annotated[
        str, typer.Option("--actions", help="Who acts: flow (the head) or fast (action tokens).")
    ] = "flow",
    think: Annotated[bool, typer.Option("--think/--no-think", help="Write a thought before each chunk.")] = True,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND_HELP)] = "auto",
) -> None:
    """Serve a policy over HTTP until Ctrl-C.

    No password, no encryption: it answers this machine only, unless --host says otherwise.
    """
    from roboalign.sdk.evaluation import PolicyServer
    from roboalign.sdk.evaluation.server import is_loopback, robot_spec

    ref = policy_ref(policy, actions=actions, think=think, backend=backend)
    spec = robot_spec(robot)
    # Opened once before anybody asks: a wrong path is found now.
    ref.open_alone(spec).close()
    server = PolicyServer(
        lambda: ref.open_alone(spec), ref.describe(), host=host, port=port, max_sessions=sessions
    ).open()
    if not is_loopback(host):
        print_note(f"note: everybody who reaches {host} can use this policy; there is no password")
    print(server.url, flush=True)
    print_note(f"serving {ref.name}; Ctrl-C stops it")
    # SIGINT too: a shell makes a background job ignore it, and then nothing but a kill would stop the server.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        server.serve()
    except KeyboardInterrupt:
        print_note("stopped")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
