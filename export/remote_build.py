"""`roboalign build BUNDLE --on user@board`: the same build, on a board that the system's ssh reaches.

Version, board and room are asked for first; then what the board lacks of the bundle is sent, the board builds and
compares, and its engines and receipt come back and are verified here. Only ssh is used: files travel as tar archives
through it, and the remote side needs a POSIX shell, tar, sha256sum and roboalign. The folder over there is kept, so a
build that was interrupted goes on where it was. When this side goes away, so does the build: it watches its input.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from roboalign import __version__
from roboalign.export.build import copy_bundle
from roboalign.sdk.bundle import MANIFEST_NAME, Bundle, file_digest, read_bundle
from roboalign.sdk.engines import ENGINES_FOLDER, RECEIPT_NAME, read_engine, read_engines
from roboalign.sdk.errors import BackendError, BundleError, CheckFailed, ConfigError

__all__ = ["RemoteBoard", "build_on"]

_SPARE_BYTES = 200_000_000

_ROOM_FACTOR = 11
"""The bundle itself, and five times its weights in each of two engines, as `export.build` reckons."""

_SSH_FAILED = 255
"""Exit code of ssh itself."""

_CHECK_FAILED = 1

_PATIENCE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteBoard:
    """Where to build, and how to get there."""

    address: str
    """What ssh takes, e.g. `user@board`."""
    command: str = "roboalign"
    """How roboalign is called there, e.g. `~/env/bin/roboalign`: ssh does not read the files that set a PATH."""
    ssh: tuple[str, ...] = ("ssh",)
    """The ssh to call, with its options."""

    def __post_init__(self) -> None:
        if not self.address or self.address.startswith("-") or any(c.isspace() for c in self.address):
            raise ConfigError(f"--on takes an address for ssh such as user@board, found {self.address!r}")


def build_on(
    board: RemoteBoard, bundle: Path, *, out: Path | None = None, say: Callable[[str], None] | None = None
) -> Path:
    """Builds on another machine and returns the receipt, which lies in this machine's copy of the bundle.

    Args:
        board: the other machine.
        bundle: a folder that the export wrote.
        out: folder to copy the bundle to first; None brings the engines into the bundle's own folder.
        say: takes each line of progress; None prints on stderr. The board's own lines go to stderr.

    Raises:
        BackendError: ssh, the version, or the build over there failed.
        BundleError: the bundle is altered, needs no build, or what came back is not what its receipt says.
        CheckFailed: the board built engines, and they did not pass.
        ConfigError: there is no room over there.
    """
    say = say or _print_progress
    found = read_bundle(bundle)
    if found.manifest.built:
        raise BundleError(
            f"bundle {bundle} is for {found.manifest.target} and runs as it is; there is nothing to build"
        )
    digest = file_digest(bundle / MANIFEST_NAME)
    folder = f".cache/roboalign/builds/{_plain_name(found.manifest.name)}-{digest[:12]}"
    if out is not None:
        found = copy_bundle(found, out)
    say(f"asking {board.address} for its version and room")
    there = _ask(board, folder, found)
    missing = [name for name in found.manifest.files if there.digests.get(name) != found.manifest.files[name].sha256]
    if there.digests.get(MANIFEST_NAME) != digest:
        missing.append(MANIFEST_NAME)  # last: a copy that was interrupted is no bundle
    _check_room(board, found, missing, there.free_bytes)
    if missing:
        size = sum((found.path / name).stat().st_size for name in missing)
        say(f"sending {len(missing)} files, {size / 1e6:.1f} MB, to {board.address}:{folder}")
        _send(board, folder, found.path, missing)
    say(f"building on {board.address}")
    receipt = _build(board, folder)
    say("bringing the engines back")
    return _bring_back(board, folder, receipt, found, digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class _There:
    free_bytes: int
    digests: dict[str, str]


def _ask(board: RemoteBoard, folder: str, bundle: Bundle) -> _There:
    """Returns what the other side has; its version has to be this one."""
    names = shlex.join([*bundle.manifest.files, MANIFEST_NAME])
    script = (
        f"{board.command} --version || exit 3\n"
        "df -Pk . | tail -n 1\n"
        "echo --\n"
        f"if cd {shlex.quote(folder)} 2>/dev/null; then sha256sum -- {names} 2>/dev/null; fi\n"
        "exit 0\n"
    )
    done = _run(board, script)
    if done.returncode == 3:
        raise BackendError(
            f"{board.address} cannot run {board.command!r} ({_last(done.stderr)}); install roboalign there, or name it "
            "with --board-command, e.g. --board-command '~/env/bin/roboalign'"
        )
    _check(board, done, "asking for version and room")
    head, _, listing = done.stdout.decode(errors="replace").partition("--\n")
    try:
        version, room = head.splitlines()[-2:]
        free_bytes = int(room.split()[3]) * 1024
    except (ValueError, IndexError) as err:
        raise BackendError(f"{board.address} answered {head[:200]!r}, expected a version and free space") from err
    if version != f"roboalign {__version__}":
        raise BackendError(
            f"{board.address} has {version!r} and this is roboalign {__version__}; install the same version on both"
        )
    pairs = [line.split(maxsplit=1) for line in listing.splitlines()]
    return _There(free_bytes=free_bytes, digests={pair[1]: pair[0] for pair in pairs if len(pair) == 2})


def _check_room(board: RemoteBoard, bundle: Bundle, missing: Sequence[str], free_bytes: int) -> None:
    weights = sum(record.num_bytes for record in bundle.manifest.files.values())
    needed = (_ROOM_FACTOR if missing else _ROOM_FACTOR - 1) * weights + _SPARE_BYTES
    if needed > free_bytes:
        raise ConfigError(
            f"bundle and engines need up to {needed / 1e9:.1f} GB on {board.address}, and {free_bytes / 1e9:.1f} GB "
            "is free there; make room"
        )


def _send(board: RemoteBoard, folder: str, source: Path, names: Sequence[str]) -> None:
    quoted = shlex.quote(folder)
    script = f"mkdir -p {quoted} && tar -C {quoted} -xf -"
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(_ssh(board, script), stdin=pipe, stdout=nowhere, stderr=pipe) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        try:
            with child.stdin, tarfile.open(fileobj=child.stdin, mode="w|") as archive:
                for name in names:
                    archive.add(source / name, arcname=name, recursive=False, filter=_without_owner)
        except BrokenPipeError:
            pass  # the other side says why
        except BaseException:
            child.kill()
            raise
        said = child.stderr.read()
    if child.returncode != 0:
        raise BackendError(f"sending to {board.address} failed: {_last(said)}")


def _build(board: RemoteBoard, folder: str) -> PurePosixPath:
    """Builds over there and returns the receipt's path below the folder; its progress goes to our stderr.

    The other side stops when its input ends, so our end of it stays open until it is done.
    """
    script = f"cd {shlex.quote(folder)} && exec {board.command} build . --json --attached"
    with subprocess.Popen(_ssh(board, script), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            answer = child.stdout.read()
            code = child.wait()
        finally:
            _let_go(child)
    if code == _CHECK_FAILED:
        raise CheckFailed(f"the engines of {board.address} did not pass; its last line says why")
    if code != 0:
        said = "ssh could not go on" if code == _SSH_FAILED else "its last line says why"
        raise BackendError(f"the build on {board.address} ended with exit code {code}; {said}")
    try:
        return PurePosixPath(str(json.loads(answer.decode().splitlines()[-1])["path"]))
    except (ValueError, KeyError, IndexError, TypeError) as err:
        raise BackendError(f"{board.address} answered {answer[:200]!r}, expected the path of a receipt") from err


def _let_go(child: subprocess.Popen[bytes]) -> None:
    """Ends the input, at which the build over there stops and tidies up; ssh is ended when it does not."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.terminate()
        child.wait()


def _bring_back(board: RemoteBoard, folder: str, receipt: PurePosixPath, bundle: Bundle, digest: str) -> Path:
    """Fetches one folder of engines, verifies all of it, and only then gives it its name here."""
    place = receipt.parent.name
    if receipt.name != RECEIPT_NAME or receipt.parent.parent.name != ENGINES_FOLDER or place in ("", ".", ".."):
        raise BackendError(f"{board.address} names {str(receipt)!r}, expected {ENGINES_FOLDER}/.../{RECEIPT_NAME}")
    final = bundle.path / ENGINES_FOLDER / place
    work = final.with_name(f".{place}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        source = shlex.quote(f"{folder}/{ENGINES_FOLDER}/{place}")
        child = subprocess.Popen(
            _ssh(board, f"tar -C {source} -cf - ."), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            _unpack(child.stdout, work)
        except tarfile.TarError as err:
            raise BackendError(f"what {board.address} sent back is cut short ({err}); build again") from err
        finally:
            child.stdout.close()
            code = child.wait()
        if code != 0:
            raise BackendError(f"fetching the engines from {board.address} failed with exit code {code}")
        engines = read_engines(work)
        for engine in engines.engines.values():
            read_engine(work, engine)
        if engines.bundle_sha256 != digest or engines.parity is None:
            raise BundleError(f"{board.address} sent the engines of another bundle, or untested ones; build again")
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final / RECEIPT_NAME


def _unpack(stream: IO[bytes], folder: Path) -> None:
    """Writes the plain files of an archive into a folder, flat; nothing in it can name another place."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if not member.isfile() or not name.endswith((".engine", ".json")):
                continue
            content = archive.extractfile(member)
            assert content is not None
            with (folder / name).open("wb") as target:
                shutil.copyfileobj(content, target)


def _run(board: RemoteBoard, script: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(_ssh(board, script), stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError as err:
        raise BackendError(
            f"there is no {board.ssh[0]!r} here; install it with: sudo apt install openssh-client"
        ) from err


def _ssh(board: RemoteBoard, script: str) -> list[str]:
    # The shell over there is the user's; sh is what the script is written for.
    return [*board.ssh, "--", board.address, f"sh -c {shlex.quote(script)}"]


def _check(board: RemoteBoard, done: subprocess.CompletedProcess[bytes], what: str) -> None:
    if done.returncode != 0:
        raise BackendError(f"{what} on {board.address} failed: {_last(done.stderr)}")


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no reason was given"


def _without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _plain_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60] or "bundle"


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
