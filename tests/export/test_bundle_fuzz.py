"""Bundles that somebody broke, by chance or on purpose: each is refused with a reason, before a library reads a byte.

Whatever is drawn follows from the number of the case. Where `seal` is called, digests and the manifest's own were made
anew, as somebody would who edits a bundle and knows how it is checked.
"""

import collections
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roboalign.sdk.bundle import FORMAT_VERSION, MANIFEST_NAME, file_record, read_bundle, shipped_bundle_path
from roboalign.sdk.bundle_check import sealed_text
from roboalign.sdk.errors import RoboalignError
from roboalign.sdk.policy import Policy

GRAPHS = (
    "prefill.onnx",
    "step.onnx",
    "hear.onnx",
    "look.onnx",
    "lower.onnx",
    "upper.onnx",
    "write_actions.onnx",
    "flow.onnx",
)
WEIGHTS = ("model.safetensors", "head.safetensors", "parity.safetensors")


class Broken:
    """A copy of a bundle to be broken: files are links to the same bytes until they are written."""

    def __init__(self, bundle: Path, folder: Path, number: int) -> None:
        self.rng = random.Random(number)
        self.folder = folder
        folder.mkdir()
        for path in bundle.iterdir():
            os.link(path, folder / path.name)
        self.files = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)

    def pick(self, names: tuple[str, ...] | None = None) -> str:
        return self.rng.choice(names or self.files)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).unlink()
        (self.folder / name).write_bytes(content)

    @property
    def manifest(self) -> dict:
        return json.loads(self.read(MANIFEST_NAME))

    def seal(self, content: dict, *, files: bool = True) -> None:
        """Writes a manifest whose digests are right."""
        if files:
            records = {name: file_record(self.folder / name) for name in self.files}
            content["files"] = {n: {"sha256": r.sha256, "num_bytes": r.num_bytes} for n, r in records.items()}
        content.pop("manifest_sha256", None)
        self.write(MANIFEST_NAME, sealed_text(content).encode())

    def remove(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


def flip_a_bit(broken: Broken) -> None:
    name = broken.pick((*broken.files, MANIFEST_NAME))
    content = bytearray(broken.read(name))
    content[broken.rng.randrange(len(content))] ^= 1 << broken.rng.randrange(8)
    broken.write(name, bytes(content))


def truncate(broken: Broken) -> None:
    name = broken.pick((*broken.files, MANIFEST_NAME))
    content = broken.read(name)
    broken.write(name, content[: broken.rng.randrange(len(content))])


def append(broken: Broken) -> None:
    name = broken.pick((*broken.files, MANIFEST_NAME))
    broken.write(name, broken.read(name) + broken.rng.randbytes(broken.rng.randrange(1, 99)))


def swap_two(broken: Broken) -> None:
    first, second = broken.rng.sample(broken.files, 2)
    one, other = broken.read(first), broken.read(second)
    broken.write(first, other)
    broken.write(second, one)


def take_from_another_bundle(broken: Broken) -> None:
    names = sorted({*broken.files, MANIFEST_NAME} & {path.name for path in shipped_bundle_path().iterdir()})
    others = {name: (shipped_bundle_path() / name).read_bytes() for name in names}
    name = broken.rng.choice([name for name in names if others[name] != broken.read(name)])
    broken.write(name, others[name])


def remove_a_file(broken: Broken) -> None:
    (broken.folder / broken.pick((*broken.files, MANIFEST_NAME))).unlink()


def link_outside(broken: Broken) -> None:
    """The content is right, but it lies elsewhere and may be another one tomorrow."""
    name = broken.pick((*broken.files, MANIFEST_NAME))
    outside = broken.folder.with_name(f"{broken.folder.name}-{name}")
    (broken.folder / name).rename(outside)
    (broken.folder / name).symlink_to(outside if broken.rng.random() < 0.5 else Path("..") / outside.name)


def leaves(value: object, path: tuple = ()) -> Iterator[tuple]:
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def change(content: dict, path: tuple, new: Callable[[object], object]) -> None:
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new(place[path[-1]])


def edit_the_manifest(broken: Broken) -> None:
    """Any change of any value, without making the digest anew."""
    content = broken.manifest
    path = broken.rng.choice(list(leaves(content)))
    values = [0, -1, 1, 2**70, 1e-3, "", "x", None, True, [], {}, ["x"]]
    change(content, path, lambda old: broken.rng.choice([value for value in values if value != old]))
    broken.write(MANIFEST_NAME, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def spoil_a_type(broken: Broken) -> None:
    content = broken.manifest
    place = broken.rng.choice([p for p in leaves(content) if p[0] not in ("files", "manifest_sha256")])
    change(content, place, lambda old: broken.rng.choice([one for one in (None, {}, {"x": 1}) if one != old]))
    broken.seal(content, files=False)


def spoil_a_number(broken: Broken) -> None:
    """Figures that have the right type and cannot be."""
    content, policy = broken.manifest, broken.manifest["policy"]
    which = broken.rng.randrange(6)
    if which == 0:
        policy[broken.rng.choice(["horizon", "hidden_size", "max_tokens", "rate_hz"])] = -broken.rng.randrange(9)
    elif which == 1:
        policy["action_low"][broken.rng.randrange(5)] = 1e9
    elif which == 2:
        policy["action_high"] = policy["action_high"][: broken.rng.randrange(5)]
    elif which == 3:
        policy["image_size_px"] += 1 + broken.rng.randrange(9)
    elif which == 4:
        policy["camera_names"] = []
    else:
        graph = content["graphs"][broken.rng.choice(list(content["graphs"]))]
        graph["inputs"][0]["shape"] = [broken.rng.choice([0, -1, 2**40])]
    content["policy"] = policy
    broken.seal(content, files=False)


def nest_deeply(broken: Broken) -> None:
    depth = broken.rng.randrange(2_000, 200_000)
    broken.write(MANIFEST_NAME, b"[" * depth + b"]" * depth)


def come_from_the_future(broken: Broken) -> None:
    broken.seal({**broken.manifest, "format_version": FORMAT_VERSION + broken.rng.randrange(1, 99)}, files=False)


def claim_an_older_format(broken: Broken) -> None:
    broken.seal({**broken.manifest, "format_version": broken.rng.choice([1, 0, -1])}, files=False)


def list_a_file_outside(broken: Broken) -> None:
    content, names = broken.manifest, ["../{}", "/etc/{}", "a/{}", "..\\{}", "..", ".", "", "{}\0x", "../../../{}"]
    name = broken.rng.choice(names).format(broken.pick())
    if broken.rng.random() < 0.5:
        content["files"][name] = content["files"][broken.pick()]
    else:
        content["graphs"][broken.rng.choice(list(content["graphs"]))]["file"] = name
    broken.seal(content, files=False)


def spoil_a_header(broken: Broken) -> None:
    """Lengths that would make a reader allocate or read beyond the end; digests are right."""
    name = broken.pick(WEIGHTS)
    content = broken.read(name)
    (length,) = struct.unpack("<Q", content[:8])
    sizes = [0, 1, len(content) - 7, len(content), 2**31, 2**63 - 1, 2**64 - 1, length + 1, length - 1]
    broken.write(name, struct.pack("<Q", broken.rng.choice(sizes)) + content[8:])
    broken.seal(broken.manifest)


def spoil_offsets(broken: Broken) -> None:
    """Tensors that overlap, leave gaps, lie outside, or are longer than their shape."""
    name = broken.pick(WEIGHTS)
    content = broken.read(name)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entry = header[broken.rng.choice(sorted(key for key in header if key != "__metadata__"))]
    which = broken.rng.randrange(4)
    if which == 0:
        entry["data_offsets"][broken.rng.randrange(2)] += broken.rng.choice([-2, 2, 2**40])
    elif which == 1:
        entry["shape"] = [broken.rng.choice([-1, 0, 2**40, 1.5, "x"])]
    elif which == 2:
        entry["dtype"] = broken.rng.choice(["F64", "I3", "", None])
    else:
        del entry[broken.rng.choice(["dtype", "shape", "data_offsets"])]
    text = json.dumps(header).encode()
    broken.write(name, struct.pack("<Q", len(text)) + text + content[8 + length :])
    broken.seal(broken.manifest)


def read_weights_from_elsewhere(broken: Broken) -> None:
    """A graph whose weights lie in a file outside, of the same length as the true name; digests are right."""
    name = broken.pick(GRAPHS)
    content, weights = broken.read(name), b"head.safetensors" if name == "flow.onnx" else b"model.safetensors"
    outside = broken.rng.choice(
        [b"../../../../etc/x", b"/etc/ssh/ssh_host", b"..\\..\\windows\\xx", b"manifest.jsonxxx "]
    )
    places = [i for i in range(len(content)) if content.startswith(weights, i)]
    place = broken.rng.choice(places)
    spoiled = (outside * 2)[: len(weights)]
    broken.write(name, content[:place] + spoiled + content[place + len(weights) :])
    broken.seal(broken.manifest)


def cut_a_graph(broken: Broken) -> None:
    """The graph ends inside its one large field; digests are right."""
    name = broken.pick(GRAPHS)
    content = broken.read(name)
    broken.write(name, content[: broken.rng.randrange(len(content) // 4, len(content) // 2)])
    broken.seal(broken.manifest)


def exchange_the_statistics(broken: Broken) -> None:
    head = json.loads(broken.read("head.json"))
    head[broken.rng.choice(["state_mean", "state_std"])][broken.rng.randrange(5)] += 0.25
    broken.write("head.json", json.dumps(head).encode())
    broken.seal(broken.manifest)


def exchange_the_tokenizer(broken: Broken) -> None:
    broken.write("tokenizer.json", (shipped_bundle_path() / "tokenizer.json").read_bytes())
    broken.seal(broken.manifest)


def be_for_another_robot(broken: Broken) -> None:
    content = broken.manifest
    content["robot"]["name"] = broken.rng.choice(["so101", "koch", "panda2", "Panda"])
    broken.seal(content, files=False)


WAYS = (
    flip_a_bit,
    truncate,
    append,
    swap_two,
    take_from_another_bundle,
    remove_a_file,
    link_outside,
    edit_the_manifest,
    spoil_a_type,
    spoil_a_number,
    nest_deeply,
    come_from_the_future,
    claim_an_older_format,
    list_a_file_outside,
    spoil_a_header,
    spoil_offsets,
    read_weights_from_elsewhere,
    cut_a_graph,
    exchange_the_statistics,
    exchange_the_tokenizer,
    be_for_another_robot,
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was handed to a library that reads weights, graphs or vocabularies; they are never let near the file."""
    import onnxruntime
    import safetensors
    import safetensors.numpy
    import tokenizers

    seen: list[str] = []

    def note(what: str) -> Callable[..., None]:
        def refuse(*args: object, **more: object) -> None:
            seen.append(what)
            raise OSError(f"{what} was reached")

        return refuse

    monkeypatch.setattr(onnxruntime, "InferenceSession", note("onnxruntime"))
    monkeypatch.setattr(safetensors, "safe_open", note("safetensors"))
    monkeypatch.setattr(safetensors.numpy, "load_file", note("safetensors"))
    monkeypatch.setattr(tokenizers.Tokenizer, "from_file", note("tokenizers"))
    return seen


def check(bundle: Path, folder: Path, numbers: range, opened: list[str]) -> collections.Counter[str]:
    """Breaks a bundle in as many ways as there are numbers; returns how often each was refused."""
    refused: collections.Counter[str] = collections.Counter()
    for number in numbers:
        way = WAYS[number % len(WAYS)]
        broken = Broken(bundle, folder / f"case-{number}", number)
        way(broken)
        where = f"case {number}, {way.__name__}"
        with pytest.raises(RoboalignError) as refusal:
            Policy.load(broken.folder, robot=("panda",))
        assert not opened, f"{where}: {opened[0]} read it; {refusal.value}"
        assert len(str(refusal.value)) > 40, where
        refused[way.__name__] += 1
        broken.remove()
    return refused


def test_every_broken_bundle_is_refused_before_it_is_read(bundle: Path, tmp_path: Path, opened: list[str]) -> None:
    refused = check(bundle, tmp_path, range(15 * len(WAYS)), opened)
    assert set(refused) == {way.__name__ for way in WAYS}


@pytest.mark.slow
def test_ten_thousand_broken_bundles_are_refused(
    bundle: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = check(bundle, tmp_path, range(10**6, 10**6 + 10**4), opened)
    with capsys.disabled():
        print("".join(f"\n{count:6d} {way}" for way, count in sorted(refused.items())))
    assert sum(refused.values()) == 10**4


def test_the_whole_bundle_is_read(bundle: Path, tmp_path: Path, opened: list[str]) -> None:
    """Also when it was copied as the broken ones are, and sealed again; then the libraries are reached."""
    whole = Broken(bundle, tmp_path / "whole", 0)
    whole.seal(whole.manifest)
    assert read_bundle(whole.folder).manifest == read_bundle(bundle).manifest
    with pytest.raises(RoboalignError, match="onnxruntime was reached"):
        Policy.load(whole.folder, robot=("panda",))
    assert opened == ["onnxruntime"]
