"""The TensorRT backend on a stub of TensorRT and CUDA that runs graphs with onnxruntime: nothing here ran on a board.

With `--also gpu`, on a machine with TensorRT and an NVIDIA GPU, the comparison runs for real.
"""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.boards import write_board
from tests.stub_board import (
    BOARDS,
    SOME_PARITY,
    copy_portable,
    make_portable,
    noise_observations,
    real_place,
    stub_board,
)

from roboalign.export import build as build_module
from roboalign.export.build import build, build_engines
from roboalign.sdk.backends import choose_backend
from roboalign.sdk.backends.cuda_runtime import Cuda
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.backends.tensorrt import TensorRtBackend
from roboalign.sdk.board import detect_board
from roboalign.sdk.bundle import file_digest, file_record, read_bundle, write_manifest
from roboalign.sdk.engines import find_engines, read_engines, write_engines
from roboalign.sdk.errors import BackendError, BundleError
from roboalign.sdk.policy import Policy


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with engines for the stub of TensorRT 10.3, and that board's files; read only."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch, stub_board(patch) as board:
        root = board.write(folder / "board")
        build(make_portable(folder / "bundle"), say=quiet, root=root)
    return folder / "bundle", root


@pytest.fixture
def copy(built: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(built[0], tmp_path / "bundle")
    return tmp_path / "bundle", built[1]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stub of TensorRT 10.3 on AGX Orin; gives the stub of CUDA, whose `INSTALLED` is the library in use."""
    with stub_board(monkeypatch):
        import_module("tensorrt")
        yield import_module("cudart_stub")


@pytest.fixture
def backend(built: tuple[Path, Path], stub: ModuleType) -> Iterator[TensorRtBackend]:
    opened = TensorRtBackend.open(built[0], root=built[1])
    yield opened
    opened.close()


PROMPT = [3, 5, 7, 11]


def picture() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((3, 96, 96)).astype(np.float32)


@pytest.mark.parametrize("tensorrt", [*BOARDS, pytest.param("real", marks=pytest.mark.gpu)])
def test_a_policy_acts_on_engines_as_with_onnxruntime(
    tensorrt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, root = make_portable(tmp_path / "bundle"), tmp_path / "board"
    if tensorrt == "real":
        build_engines(read_bundle(bundle), real_place(root), say=quiet)
        compare(bundle, root, tolerance=1e-3)
        return
    with stub_board(monkeypatch, tensorrt) as board:
        receipt = build(bundle, say=quiet, root=board.write(root))
        assert read_engines(receipt.parent).tensorrt == tensorrt
        compare(bundle, root, tolerance=1e-6)


@pytest.mark.jetson
def test_a_policy_acts_on_engines_of_this_board_as_with_onnxruntime(tmp_path: Path) -> None:
    bundle = make_portable(tmp_path / "bundle")
    build(bundle, say=quiet)
    compare(bundle, Path("/"), tolerance=1e-3)


def compare(bundle: Path, root: Path, *, tolerance: float) -> None:
    observations = noise_observations(2)
    answers = []
    for opened in (TensorRtBackend.open(bundle, root=root), OnnxBackend.open(bundle)):
        with Policy(opened) as policy:
            answers.append([policy.act(observation) for observation in observations])
            answers[-1].append(policy.act(observations[0], thought_about=observations[1]))
    for ours, theirs in zip(*answers, strict=True):
        assert ours.source == theirs.source == "flow"
        assert ours.tokens == theirs.tokens
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=tolerance)


def test_keys_values_and_hidden_states_are_those_of_the_onnx_backend(backend, stub, built) -> None:
    reference = OnnxBackend.open(built[0])
    backend.prefill(PROMPT * 3, picture())  # nothing of a longer sequence may be left
    ours, theirs = backend.prefill(PROMPT, picture()), reference.prefill(PROMPT, picture())
    for token in (9, 13):
        backend.step(ours, token)
        reference.step(theirs, token)
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    for name, expected in (("kv", theirs.cache.kv), ("hidden", theirs.cache.hidden)):
        buffer = backend._caches[name]
        place = stub.INSTALLED[0].at(buffer.address, expected.nbytes, "device")
        found = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * expected.size).from_address(place))
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_a_shorter_prompt_leaves_nothing_of_a_longer_one(backend, built) -> None:
    backend.prefill(PROMPT * 3, picture())
    ours, theirs = backend.prefill(PROMPT, picture()), OnnxBackend.open(built[0]).prefill(PROMPT, picture())
    state, noise = np.zeros(5, np.float32), np.ones((8, 5), np.float32)
    actions = backend.flow(ours, state, noise)
    np.testing.assert_array_equal(actions, OnnxBackend.open(built[0]).flow(theirs, state, noise))


def halve(bundle: Path) -> None:
    """Makes keys, values and scores of a bundle's graphs float16 where they come in and go out.

    Not the hidden states: those of the shipped policy are larger than float16 can hold.
    """
    import onnx
    from onnx import TensorProto, helper

    manifest = read_bundle(bundle).manifest
    names, files, graphs = {"kv", "kv_new", "logits"}, dict(manifest.files), {}
    for role, spec in manifest.graphs.items():
        model = onnx.load(bundle / spec.file, load_external_data=False)
        for value in model.graph.input:
            if value.name in names:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
                for node in model.graph.node:
                    node.input[:] = [f"{name}_32" if name == value.name else name for name in node.input]
                model.graph.node.insert(
                    0, helper.make_node("Cast", [value.name], [f"{value.name}_32"], to=TensorProto.FLOAT)
                )
        for value in model.graph.output:
            if value.name in names:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
                for node in model.graph.node:
                    node.output[:] = [f"{name}_out" if name == value.name else name for name in node.output]
                    node.input[:] = [f"{name}_out" if name == value.name else name for name in node.input]
                cast = helper.make_node("Cast", [f"{value.name}_out"], [value.name], to=TensorProto.FLOAT16)
                model.graph.node.append(cast)
        (bundle / spec.file).write_bytes(model.SerializeToString())
        files[spec.file] = file_record(bundle / spec.file)
        sides = (
            tuple(replace(one, dtype="float16") if one.name in names else one for one in side)
            for side in (spec.inputs, spec.outputs)
        )
        graphs[role] = replace(spec, inputs=next(sides), outputs=next(sides))
    write_manifest(bundle, replace(manifest, graphs=graphs, files=files))


def test_caches_of_16_bits_are_kept_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, root = make_portable(tmp_path / "bundle"), tmp_path / "board"
    reference = OnnxBackend.open(copy_portable(tmp_path / "plain"))
    halve(bundle)
    with stub_board(monkeypatch) as board:
        monkeypatch.setattr(build_module, "compare_engines", lambda *args: SOME_PARITY)
        build(bundle, say=quiet, root=board.write(root))
        backend = TensorRtBackend.open(bundle, root=root)
        ours, theirs = backend.prefill(PROMPT, picture()), reference.prefill(PROMPT, picture())
        for token in (9, 13):
            backend.step(ours, token)
            reference.step(theirs, token)
        assert ours.logits.dtype == np.float32
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=0.05)
        state, noise = np.zeros(5, np.float32), np.ones((8, 5), np.float32)
        actions = backend.flow(ours, state, noise)
        np.testing.assert_allclose(actions, reference.flow(theirs, state, noise), atol=0.02)
        buffers = [buffer.spec.dtype for buffer in backend._caches.values()]
        backend.close()
    assert buffers == ["float16", "float32"]


def test_a_step_is_one_graph_and_two_copies_on_the_device(backend, stub) -> None:
    decoding = backend.prefill(PROMPT, picture())
    cuda = stub.INSTALLED[0]
    cuda.counts.clear()
    backend.step(decoding, 9)
    assert cuda.counts == {
        "cudaGraphLaunch": 1,
        "cudaMemcpy2DAsync": 1,
        "cudaMemcpyAsync": 1,
        "cudaStreamSynchronize": 1,
    }


def test_what_a_caller_holds_does_not_change_with_the_next_call(backend) -> None:
    decoding = backend.prefill(PROMPT, picture())
    before = decoding.logits
    kept = before.copy()
    backend.step(decoding, 9)
    np.testing.assert_array_equal(before, kept)
    assert not np.array_equal(decoding.logits, kept)


def test_closing_frees_everything_and_ends_it(backend, stub) -> None:
    decoding = backend.prefill(PROMPT, picture())
    backend.close()
    backend.close()
    cuda = stub.INSTALLED[0]
    assert (cuda.memory, cuda.streams, cuda.graphs) == ({"device": {}, "host": {}}, {}, {})
    with pytest.raises(BackendError, match="was closed; load the policy again"):
        backend.step(decoding, 9)
    with pytest.raises(BackendError, match="was closed; load the policy again"):
        backend.inspect(decoding)  # what it would read is freed


def test_an_older_sequence_is_refused(backend) -> None:
    older = backend.prefill(PROMPT, picture())
    backend.prefill(PROMPT, picture())
    with pytest.raises(BackendError, match="another prompt was read since"):
        backend.step(older, 9)


def test_a_failing_gpu_is_an_error_with_cudas_reason_and_everything_is_still_let_go(backend, stub) -> None:
    decoding = backend.prefill(PROMPT, picture())
    stub.INSTALLED[0].broken = stub.MISUSE
    with pytest.raises(BackendError, match="cudaGraphLaunch failed with CUDA error 700: illegal memory access"):
        backend.step(decoding, 9)
    backend.close()


# What stands against engines, before one of them is read.


def edited(copy: tuple[Path, Path], **changes: object) -> tuple[Path, Path]:
    bundle, root = copy
    (receipt,) = bundle.glob("engines/*/engines.json")
    write_engines(receipt.parent, replace(read_engines(receipt.parent), **changes))
    return bundle, root


@pytest.fixture
def unread(stub: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes reading an engine a failure of the test."""

    def read(self: object, content: bytes) -> object:
        raise AssertionError("an engine was read")

    monkeypatch.setattr(import_module("tensorrt").Runtime, "deserialize_cuda_engine", read)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "NVIDIA Jetson AGX Thor Developer Kit"}, "for board NVIDIA Jetson AGX Thor Developer Kit, and this"),
        ({"memory_bytes": 32 * 2**30}, "for a board with 34.4 GB, and this has 65.9 GB"),
        ({"l4t": "36.3.0"}, "for Jetson Linux 36.3.0, and this is 36.4.3"),
        ({"tensorrt": "10.16.2"}, "for TensorRT 10.16.2, and this is 10.3.0"),
        ({"power_mode": "MODE_15W"}, "for power mode MODE_15W, and this is MAXN"),
        ({"bundle_sha256": "0" * 64}, "built from another bundle"),
        ({"parity": None}, "never compared with onnxruntime"),
    ],
)
def test_engines_of_another_board_version_or_bundle_are_refused(copy, unread, changes: dict, reason: str) -> None:
    bundle, root = edited(copy, **changes)
    with pytest.raises(BackendError, match=f"no engines for this machine .*{reason}"):
        TensorRtBackend.open(bundle, root=root)


def test_another_gpu_is_refused(copy, unread) -> None:
    bundle, root = edited(copy, capability="11.0")
    with pytest.raises(BackendError, match=r"for compute capability 11\.0, and Python has 8\.7 here"):
        TensorRtBackend.open(bundle, root=root)


def test_another_tensorrt_in_python_than_on_the_board_is_refused(copy, unread, monkeypatch) -> None:
    monkeypatch.setattr(import_module("tensorrt"), "__version__", "10.7.0")
    with pytest.raises(BackendError, match=r"for TensorRT 10\.3\.0, and Python has 10\.7\.0 here"):
        TensorRtBackend.open(copy[0], root=copy[1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1], "is damaged: .* bytes, expected"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is altered: sha256"),
        (None, "is missing"),
    ],
)
def test_an_altered_engine_is_refused(copy, unread, damage, reason: str) -> None:
    bundle, root = copy
    path = next(bundle.glob("engines/*/flow-*.engine"))
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    with pytest.raises(BundleError, match=reason):
        TensorRtBackend.open(bundle, root=root)


def test_an_engine_is_not_followed_out_of_its_folder(copy, unread) -> None:
    bundle, root = copy
    path = next(bundle.glob("engines/*/flow-*.engine"))
    outside = bundle.parent / "outside.engine"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(BundleError, match="is missing"):
        TensorRtBackend.open(bundle, root=root)
    engines = read_engines(path.parent)
    flow = replace(engines.engines["flow"], file="../outside.engine")
    edited(copy, engines={**engines.engines, "flow": flow})
    with pytest.raises(BackendError, match=r"'\.\./outside\.engine', which lies outside it"):
        TensorRtBackend.open(bundle, root=root)


def test_the_engine_of_another_graph_is_refused(copy, stub) -> None:
    bundle, root = copy
    engines = read_engines(next(bundle.glob("engines/*")))
    edited(copy, engines={**engines.engines, "flow": engines.engines["step"]})
    with pytest.raises(BundleError, match=r"has the tensors hidden, kv, kv_new, .* the manifest says actions"):
        TensorRtBackend.open(bundle, root=root)


def test_an_engine_with_other_types_than_the_manifest_is_refused(copy, stub) -> None:
    bundle, root = copy
    manifest = read_bundle(bundle).manifest
    step = manifest.graphs["step"]
    halved = tuple(replace(one, dtype="float16") if one.name == "kv" else one for one in step.inputs)
    write_manifest(bundle, replace(manifest, graphs={**manifest.graphs, "step": replace(step, inputs=halved)}))
    edited(copy, bundle_sha256=file_digest(bundle / "manifest.json"))
    with pytest.raises(BundleError, match="is read as float16"):
        TensorRtBackend.open(bundle, root=root)


def test_a_graph_with_an_input_that_nobody_fills_is_refused(copy, unread) -> None:
    bundle, root = copy
    manifest = read_bundle(bundle).manifest
    step = manifest.graphs["step"]
    more = replace(step, inputs=(*step.inputs, replace(step.inputs[0], name="position")))
    write_manifest(bundle, replace(manifest, graphs={**manifest.graphs, "step": more}))
    edited(copy, bundle_sha256=file_digest(bundle / "manifest.json"))
    with pytest.raises(BundleError, match=r"'step' of bundle .* is kv, length, position, token -> hidden, kv_new, log"):
        TensorRtBackend.open(bundle, root=root)


def test_an_engine_that_cannot_be_recorded_is_an_error_and_not_a_slower_run(built, monkeypatch) -> None:
    with stub_board(monkeypatch, REFUSES_CAPTURE="1"):
        with pytest.raises(BackendError, match="cannot be recorded as a CUDA graph: cudaStreamBeginCapture failed"):
            TensorRtBackend.open(built[0], root=built[1])
        assert import_module("cudart_stub").INSTALLED[0].memory == {"device": {}, "host": {}}


@pytest.mark.parametrize(
    ("capability", "reason"),
    [("none", "finds no GPU"), ("no library", "CUDA's runtime was not found .* sudo apt install nvidia-jetpack")],
)
def test_no_gpu_and_no_cuda_are_errors(built, monkeypatch, capability: str, reason: str) -> None:
    with stub_board(monkeypatch, CAPABILITY=capability), pytest.raises(BackendError, match=reason):
        TensorRtBackend.open(built[0], root=built[1])


def test_no_tensorrt_is_an_error_that_says_where_it_comes_from(built, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="JetPack brings it: sudo apt install python3-libnvinfer"):
        TensorRtBackend.open(built[0], root=built[1])


# What `auto` picks.


def test_auto_takes_engines_for_this_board(built, caplog) -> None:
    assert choose_backend(built[0], root=built[1]) == "tensorrt"
    assert not caplog.records


def test_engines_that_are_being_brought_here_are_not_taken(copy) -> None:
    """A build over ssh writes into a hidden folder first; its receipt may come before its engines."""
    bundle, root = copy
    (place,) = (bundle / "engines").iterdir()
    place.rename(place.with_name(f".{place.name}.1.tmp"))
    with pytest.raises(BackendError, match="it has none at all"):
        find_engines(bundle, detect_board(root))


def test_auto_says_why_it_does_not(built, tmp_path: Path, caplog) -> None:
    other = write_board(tmp_path, power_mode="MODE_15W")
    with caplog.at_level(logging.WARNING):
        assert choose_backend(built[0], root=other) == "onnx"
    assert "acting with onnxruntime on the CPU" in caplog.text
    assert "for power mode MAXN, and this is MODE_15W" in caplog.text


def test_auto_says_so_on_a_board_without_engines_and_nothing_elsewhere(tmp_path: Path, caplog) -> None:
    bundle = make_portable(tmp_path / "bundle")
    with caplog.at_level(logging.WARNING):
        assert choose_backend(bundle, root=tmp_path / "no board") == "onnx"
        assert not caplog.records
        assert choose_backend(bundle, root=write_board(tmp_path / "board")) == "onnx"
    assert "it has none at all" in caplog.text


def test_asking_for_tensorrt_where_it_cannot_run_is_an_error(built) -> None:
    """This machine is no Jetson; a board with engines runs the tests marked `jetson`."""
    if detect_board() is not None:
        pytest.skip("this is a Jetson")
    with pytest.raises(BackendError, match="this machine is no Jetson"):
        Policy.load(built[0], backend="tensorrt")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: {**data, "format_version": 99}, "format version 99"),
        (lambda data: {**data, "tensorrt": 10}, "tensorrt is 10, expected str"),
        (lambda data: {**data, "more": 1}, "missing or unknown fields"),
        (lambda data: [], "format version None"),
    ],
)
def test_an_edited_receipt_is_no_receipt(copy, change, reason: str) -> None:
    bundle, root = copy
    (receipt,) = bundle.glob("engines/*/engines.json")
    receipt.write_text(json.dumps(change(asdict(read_engines(receipt.parent)))))
    with pytest.raises(BackendError, match=reason):
        find_engines(bundle, detect_board(root))


def test_memory_of_the_runtime_is_zeroed_and_freed(stub) -> None:
    cuda = Cuda.open()
    device, host = cuda.allocate(64), cuda.pin((4, 2), np.float16)
    host[...] = 1
    cuda.download(host.view(np.uint8), device)
    assert host.all()  # nothing is there before it was waited for
    cuda.synchronize()
    assert not host.any()
    cuda.close()
    assert stub.INSTALLED[0].memory == {"device": {}, "host": {}}
