"""`roboalign build --on`: through a stand-in for ssh, and through a real sshd where this machine has one.

The other side is this machine with the files of a board and the stubs of TensorRT and CUDA; no board was reached.
"""

import getpass
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from tests.boards import write_board
from tests.stub_board import SOME_PARITY, STUB, make_portable

from roboalign import __version__
from roboalign.export import remote_build
from roboalign.export.remote_build import RemoteBoard, build_on
from roboalign.sdk.bundle import file_digest, read_bundle, shipped_bundle_path
from roboalign.sdk.engines import EngineFile, EngineSet, read_engines, write_engines
from roboalign.sdk.errors import BackendError, BundleError, CheckFailed, ConfigError

ROOT = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
echo "$2" >> {log}
shift 2
cd {home} && exec sh -c "$*"
"""

ROBOALIGN = """#!{python}
import os, sys
from functools import partial
from pathlib import Path
sys.path[:0] = {path!r}
os.environ.update(PYTHONPATH=os.pathsep.join(sys.path), TENSORRT_STUB_FAULT=Path({fault!r}).read_text())
Path({pid!r}).write_text(str(os.getpid()))
from roboalign.cli.main import main
from roboalign.export import build
build.build = partial(build.build, root=Path({root!r}))
sys.exit(main())
"""


@dataclass(frozen=True)
class Over:
    """The other side."""

    board: RemoteBoard
    home: Path
    fault: Path
    pid: Path


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def over(tmp_path: Path) -> Over:
    """A board behind a stand-in for ssh that runs what it is told in another folder."""
    home = tmp_path / "home of the board"
    home.mkdir()
    fault, pid = tmp_path / "fault", tmp_path / "pid"
    fault.write_text("")
    root = write_board(tmp_path / "root of the board")
    path = [str(STUB), str(ROOT / "src")]
    text = ROBOALIGN.format(python=sys.executable, path=path, fault=str(fault), pid=str(pid), root=str(root))
    command = executable(tmp_path / "roboalign-there", text)
    log = tmp_path / "ssh.log"
    ssh = executable(tmp_path / "ssh", SSH.format(log=f"'{log}'", home=f"'{home}'"))
    board = RemoteBoard(address="user@board", command=f"'{command}'", ssh=(str(ssh), "-o", "BatchMode=yes"))
    return Over(board=board, home=home, fault=fault, pid=pid)


@pytest.fixture
def portable(tmp_path: Path) -> Path:
    return make_portable(tmp_path / "portable")


def quiet(line: str) -> None:
    pass


def answering(over: Over, script: str) -> RemoteBoard:
    """The same way to a board whose roboalign is a few lines of shell."""
    command = executable(over.home / "there", f"#!/bin/sh\n{script}\n")
    return replace(over.board, command=f"'{command}'")


VERSION = f"if [ \"$1\" = --version ]; then echo 'roboalign {__version__}'; exit; fi"


def test_engines_and_receipt_come_back(over: Over, portable: Path) -> None:
    lines: list[str] = []
    receipt = build_on(over.board, portable, say=lines.append)
    assert receipt == portable / "engines/agx-orin-64gb-trt10.3.0-sm8.7-maxn/engines.json"
    assert read_engines(receipt.parent).parity is not None
    assert [line.split(",")[0] for line in lines] == [
        "asking user@board for its version and room",
        f"sending {len(list(portable.iterdir())) - 1} files",
        "building on user@board",
        "bringing the engines back",
    ]
    (there,) = over.home.glob(".cache/roboalign/builds/*/manifest.json")
    assert there.read_bytes() == (portable / "manifest.json").read_bytes()
    assert not [path for path in portable.rglob("*") if path.name.endswith(".tmp")]


def test_an_interrupt_here_ends_the_build_there(over: Over, portable: Path, tmp_path: Path) -> None:
    over.fault.write_text("hang flow.onnx")
    command = [sys.executable, "-m", "roboalign", "build", str(portable), "--on", "user@board"]
    path = os.pathsep.join([str(Path(over.board.ssh[0]).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}
    command += ["--board-command", over.board.command]
    # A test run in the background of a script ignores interrupts, and its children would too.
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as here:
        there = building(here, over)
        here.send_signal(signal.SIGINT)
        assert here.wait(timeout=60) == 130
    wait_until_gone(there)
    assert not list(over.home.rglob("*.tmp"))
    assert not (portable / "engines").exists()


def building(here: subprocess.Popen, over: Over) -> int:
    """Waits until the other side compiles, and returns its process."""
    said = []
    assert here.stderr is not None
    for line in here.stderr:
        said.append(line)
        if "flow.onnx: building" in line:
            return int(over.pid.read_text())
    raise AssertionError("".join(said))


def wait_until_gone(pid: int) -> None:
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


def test_an_engine_that_does_not_pass_there_is_a_failed_check_here(over: Over, portable: Path) -> None:
    board = answering(over, f"{VERSION}\necho 'error: engines fail' >&2\nexit 1")
    with pytest.raises(CheckFailed, match="the engines of user@board did not pass"):
        build_on(board, portable, say=quiet)
    assert not (portable / "engines").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'roboalign 0.0.1'", rf"has 'roboalign 0\.0\.1' and this is roboalign {__version__}"),
        ("echo broken >&2; exit 1", r"cannot run .* \(broken\); install roboalign there, or name it with --board-comm"),
        ("echo hello", r"has 'hello' and this is roboalign"),
        (f"{VERSION}\nexit 2", "ended with exit code 2; its last line says why"),
        (f"{VERSION}\necho nonsense", r"answered b'nonsense.*expected the path of a receipt"),
        (f'{VERSION}\necho \'{{"path": "../../x"}}\'', r"names '\.\./\.\./x', expected engines/"),
        (f'{VERSION}\necho \'{{"path": "engines/../engines.json"}}\'', r"expected engines/"),
        (f'{VERSION}\necho \'{{"path": "engines/none/engines.json"}}\'', "is cut short|failed with exit code"),
    ],
)
def test_a_board_that_answers_otherwise_is_an_error(over: Over, portable: Path, script: str, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        build_on(answering(over, script), portable, say=quiet)
    assert not list(portable.glob("engines/*"))


def test_a_board_without_room_gets_nothing(over: Over, portable: Path) -> None:
    executable(over.home / "df", "#!/bin/sh\necho 'x 1000 900 100 90% /'\n")
    board = answering(over, VERSION)
    ssh = executable(Path(board.ssh[0]), Path(board.ssh[0]).read_text().replace("exec sh", "PATH=.:$PATH exec sh"))
    assert ssh.is_file()
    with pytest.raises(ConfigError, match=r"need up to 0\.3 GB on user@board, and 0\.0 GB is free there"):
        build_on(board, portable, say=quiet)
    assert not list(over.home.glob(".cache"))


def some_engines(bundle: Path) -> EngineSet:
    """A receipt of one engine that is no engine: what is sent back is compared by digest, and not read."""
    engine = EngineFile(
        file="step-0.engine",
        sha256=hashlib.sha256(b"engine").hexdigest(),
        num_bytes=6,
        graph_sha256="",
        weights_sha256={},
        build_s=1.0,
    )
    return EngineSet(
        format_version=1,
        roboalign_version=__version__,
        bundle_sha256=file_digest(bundle / "manifest.json"),
        target="agx-thor",
        model="",
        memory_bytes=None,
        l4t=None,
        jetpack=None,
        tensorrt="10.13.3",
        capability="11.0",
        power_mode=None,
        engines={"step": engine},
        parity=SOME_PARITY,
    )


def there_is(over: Over, bundle: Path, engines: EngineSet, content: bytes) -> RemoteBoard:
    """A board that has already built something."""
    name = f"{read_bundle(bundle).manifest.name}-{file_digest(bundle / 'manifest.json')[:12]}"
    folder = over.home / ".cache/roboalign/builds" / name / "engines/thor"
    folder.mkdir(parents=True)
    (folder / "step-0.engine").write_bytes(content)
    write_engines(folder, engines)
    return answering(over, f'{VERSION}\necho \'{{"path": "engines/thor/engines.json"}}\'')


def test_what_came_back_whole_gets_its_name(over: Over, portable: Path) -> None:
    engines = some_engines(portable)
    board, lines = there_is(over, portable, engines, b"engine"), []
    receipt = build_on(board, portable, say=lines.append)
    assert receipt == portable / "engines/thor/engines.json"
    assert read_engines(receipt.parent) == engines
    assert len([line for line in lines if line.startswith("sending")]) == 1
    lines.clear()
    assert build_on(board, portable, say=lines.append) == receipt
    assert not [line for line in lines if line.startswith("sending")]  # what is there is not sent again


@pytest.mark.parametrize(
    ("changes", "content", "reason"),
    [
        ({}, b"enginE", r"step-0\.engine is altered"),
        ({}, b"engin", r"step-0\.engine is damaged"),
        ({"bundle_sha256": "0" * 64}, b"engine", "sent the engines of another bundle"),
        ({"parity": None}, b"engine", "or untested ones"),
    ],
)
def test_what_came_back_otherwise_does_not(over, portable, changes: dict, content: bytes, reason: str) -> None:
    board = there_is(over, portable, replace(some_engines(portable), **changes), content)
    with pytest.raises(BundleError, match=reason):
        build_on(board, portable, say=quiet)
    assert not list(portable.glob("engines/*"))


def test_an_archive_cannot_name_another_place(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("../../outside.json", "/etc/absolute.json", "engines.json", "other.sh"):
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    content.seek(0)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    remote_build._unpack(content, folder)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.json")) == [
        Path("a/b/absolute.json"),
        Path("a/b/engines.json"),
        Path("a/b/outside.json"),
    ]


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "user@board rm"])
def test_an_address_is_no_option_and_no_command(address: str) -> None:
    with pytest.raises(ConfigError, match="--on takes an address for ssh"):
        RemoteBoard(address=address)


def test_a_bundle_that_needs_no_build_goes_nowhere(over: Over) -> None:
    with pytest.raises(BundleError, match="is for cpu and runs as it is"):
        build_on(over.board, shipped_bundle_path(), say=quiet)


def test_no_ssh_is_an_error(portable: Path) -> None:
    with pytest.raises(BackendError, match="there is no 'no-such-ssh' here; install it with"):
        build_on(RemoteBoard(address="user@board", ssh=("no-such-ssh",)), portable, say=quiet)


# The same through a real server.

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
ForceCommand cd '{home}' && exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


@pytest.fixture
def served(over: Over, tmp_path: Path) -> Iterator[Over]:
    """The same board behind an sshd of this user, with keys that are thrown away."""
    assert SSHD is not None
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config"
    config.write_text(CONFIG.format(port=port, folder=folder, home=over.home))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd puts its unprivileged half; its service makes it
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)
    try:
        wait_for(port, server)
        ssh = ("ssh", "-F", "none", "-p", str(port), "-i", str(folder / "key"), "-o", "IdentitiesOnly=yes")
        ssh += ("-o", f"UserKnownHostsFile={folder / 'known'}", "-o", "StrictHostKeyChecking=accept-new")
        ssh += ("-o", "BatchMode=yes", "-o", "LogLevel=ERROR")
        yield replace(over, board=replace(over.board, address=f"{getpass.getuser()}@127.0.0.1", ssh=ssh))
    finally:
        server.terminate()
        server.communicate()


def wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(100):
        assert server.poll() is None, server.communicate()[1].decode()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("sshd does not listen")


needs_sshd = pytest.mark.skipif(SSHD is None, reason="no sshd on this machine; sudo apt install openssh-server")


@needs_sshd
def test_a_build_through_sshd_brings_engines_and_receipt_back(served: Over, portable: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    receipt = build_on(served.board, portable, out=out, say=quiet)
    assert receipt.is_relative_to(out)
    assert not (portable / "engines").exists()
    found = read_engines(receipt.parent)
    assert found.target == "agx-orin-64gb"
    assert found.parity is not None


@needs_sshd
def test_a_build_through_sshd_ends_when_the_connection_does(served: Over, portable: Path) -> None:
    served.fault.write_text("hang flow.onnx")
    script = (
        "import sys; from pathlib import Path; from roboalign.export.remote_build import RemoteBoard, build_on\n"
        f"build_on(RemoteBoard(address={served.board.address!r}, command={served.board.command!r}, "
        f"ssh={served.board.ssh!r}), Path({str(portable)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True) as here:
        there = building(here, served)
        here.kill()  # nothing here can say goodbye
    wait_until_gone(there)
    assert not list(served.home.rglob("*.tmp"))


@needs_sshd
def test_a_key_that_the_server_does_not_know_is_sshs_own_error(served: Over, portable: Path) -> None:
    ssh = tuple("/dev/null" if part.endswith("/key") else part for part in served.board.ssh)
    with pytest.raises(BackendError, match=r"asking for version and room on .* failed: .*Permission denied"):
        build_on(replace(served.board, ssh=ssh), portable, say=quiet)
