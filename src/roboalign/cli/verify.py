"""`roboalign verify`: a bundle against PyTorch's own answers, and in the simulator, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from roboalign.cli.output import print_note, print_result

__all__ = ["verify"]


def verify(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Folder, or a shipped name.", show_default="nano-policy")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Bundle to play against.", show_default="torch on the same weights"),
    ] = None,
    episodes: Annotated[
        int, typer.Option("--episodes", help="Scenes that both play in the simulator; 0 asks for parity alone.")
    ] = 200,
    backend: Annotated[str, typer.Option("--backend", help="What runs the graphs.")] = "onnx",
    workers: Annotated[int, typer.Option("--workers", help="Processes that play.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Receipt to write.", show_default="BUNDLE.receipt.json")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON.")] = False,
) -> None:
    """Verify a bundle on this machine, and write a receipt.

    Hashes, the answers of PyTorch that the bundle holds, and closed loop on paired scenes: what is not measured fails.
    """
    from roboalign.cli.output import require_file_target
    from roboalign.export import VerifyConfig
    from roboalign.export import verify as run_verification
    from roboalign.sdk.errors import CheckFailed

    if out is not None:
        require_file_target(out, ".json")
    config = VerifyConfig(
        bundle=bundle, reference=reference, episodes=episodes, backend=backend, workers=workers, out=out
    )
    receipt, path = run_verification(config, say=print_note)
    print_note(f"verdict: {receipt.verdict}")
    print_result(path, as_json=as_json, receipt=receipt)
    if receipt.verdict not in ("verified", "parity only"):
        raise CheckFailed(f"{receipt.verdict}: {'; '.join((*receipt.faults, *receipt.missing))}")
