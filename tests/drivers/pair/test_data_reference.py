"""The reference that demonstrations give: what the doctor finds by it, and which data tell nothing."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.drivers.pair.desk import NEEDS, SENTENCE, SPEC, VIEWS, DeskArm, session

from roboalign.drivers.pair.examine import examine_evidence
from roboalign.export.data_reference import write_data_reference
from roboalign.sdk.bundle import find_bundle, read_bundle
from roboalign.sdk.data import DatasetWriter, Episode, LeRobotDataset, encode_png
from roboalign.sdk.errors import DataError
from roboalign.sdk.views.dataset import dataset_reference
from roboalign.sdk.views.reference import find_reference, read_reference

PLACES = ("camera swap", "picture orientation", "colour order")


def demonstrate(seed, *, axes, see, length=27):
    """An episode in which the tool goes from place to place along some axes."""
    arm, dice = DeskArm(seed), np.random.default_rng(seed)
    seen, sent = [], []
    while len(seen) < length:
        action = np.zeros(5, np.float32)
        action[list(axes)] = dice.uniform(-0.02, 0.02, len(axes))
        action[4] = 1.0
        for _ in range(3):
            seen.append(arm.observe(SENTENCE))
            sent.append(arm.act(action).sent)
    pictures = {name: tuple(encode_png(see(one.images[name], seed)) for one in seen) for name in VIEWS}
    return Episode(
        task=SENTENCE,
        states=np.stack([one.state for one in seen]),
        joint_pos_rad=np.stack([one.joint_pos_rad for one in seen]),
        actions=np.stack(sent),
        images=pictures["front"],
        other_images={"show": pictures["show"]},
        truth_json=(None,) * len(seen),
        rate_hz=10.0,
    )


def record(folder, *, axes=(0, 1, 2), episodes=6, see=lambda picture, seed: picture, size_px=96):
    writer = DatasetWriter(
        folder, image_size_px=size_px, num_joints=SPEC.num_joints, robot_type="so101", cameras=tuple(VIEWS)
    )
    with writer:
        for seed in range(episodes):
            writer.add(demonstrate(seed, axes=axes, see=see))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return record(tmp_path_factory.mktemp("data") / "demos")


def refer(folder, cameras=("front", "show"), **more):
    return dataset_reference(LeRobotDataset(folder), cameras, robot="so101", **more)


def seen_as(change):
    """A session on the desk, with pictures that were changed."""
    evidence = session(DeskArm(99))
    moments = [
        replace(moment, seen=replace(moment.seen, images=change(moment.seen.images))) for moment in evidence.moments
    ]
    return replace(evidence, moments=tuple(moments))


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda images: images, None),
        (lambda images: {"front": images["show"], "show": images["front"]}, "camera swap"),
        (lambda images: {name: one[:, ::-1] for name, one in images.items()}, "picture orientation"),
        (lambda images: {name: one[..., ::-1] for name, one in images.items()}, "colour order"),
    ],
)
def test_the_doctor_finds_by_demonstrations_what_is_wrong_with_the_pictures(data, change, failing):
    checks = examine_evidence(seen_as(change), NEEDS, refer(data))
    assert [check.name for check in checks if check.status == "failed"] == ([failing] if failing else [])
    if failing is None:
        assert {check.name for check in checks if check.status == "passed"} >= set(PLACES)


def test_the_view_is_where_the_tool_was(data):
    found = refer(data)
    tool = np.array([0.22, 0.03, 0.06, 1.0])
    for name, view in found.views.items():
        assert np.abs(tool @ view.motion - tool @ VIEWS[name]).max() < 0.03
    assert (found.robot, found.scenes, found.sentences) == ("so101", 6, (SENTENCE,))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"see": lambda picture, seed: np.rot90(picture, seed % 4)}, "is 0.[0-9]+ of the picture away from the tool"),
        ({"axes": (1,)}, "along one direction, which is too little"),
        ({"axes": (3,)}, "showed 0 of the motions"),
        ({"see": lambda picture, seed: picture[:64], "size_px": (64, 96)}, "pictures are 96 x 64"),
    ],
)
def test_data_that_do_not_tell_make_no_reference(given, why, tmp_path):
    said = []
    assert refer(record(tmp_path / "data", **given), cameras=("front",), say=said.append) is None
    (line,) = said
    assert line.startswith("no reference of camera front: ")
    assert re.search(why, line), line


def test_a_camera_that_was_moved_leaves_the_others_their_reference(tmp_path):
    dataset = LeRobotDataset(record(tmp_path / "data"))
    truth, said = dataset.images, []
    dataset.images = lambda frames, camera: (
        truth(frames, camera) if camera == "show" else np.zeros_like(truth(frames, camera))
    )
    found = dataset_reference(dataset, ("front", "show"), robot="so101", say=said.append)
    assert (list(found.views), len(said)) == (["show"], 1)


def test_export_writes_it_beside_the_files_and_every_time_the_same(data, tmp_path):
    manifest, said = read_bundle(find_bundle("nano-so101")).manifest, []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert write_data_reference(tmp_path / name, data, manifest, said.append)
    one, two = (find_reference(tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert list(read_reference(one).views) == ["front"], "the policy's camera alone"
    assert one.stat().st_size < 2000
    assert "6 episodes" in said[0]


def test_without_data_there_is_none(tmp_path):
    manifest = read_bundle(find_bundle("nano-so101")).manifest
    assert not write_data_reference(tmp_path, None, manifest, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_other_states_are_refused():
    dataset = SimpleNamespace(info=SimpleNamespace(state_names=("a",) * 5))
    with pytest.raises(DataError, match="it records the state a, a"):
        dataset_reference(dataset, ("front",), robot="so101")
