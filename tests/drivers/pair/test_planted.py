"""Every kind of fault, planted between a sound policy, arm and machine, is named, and nothing else is."""

import itertools

import pytest
from tests.drivers.pair.desk import NEEDS, SENTENCE, DeskArm, Listener, session
from tests.drivers.pair.planted import KINDS, Planted, PlantedPolicy, PlantedRobot, healthy_machine, plant

from roboalign.drivers.pair.examine import PairConfig, examine_evidence, examine_machine, examine_policy
from roboalign.drivers.pair.reference import make_reference
from roboalign.sdk.bundle import find_bundle, read_bundle

SENTENCES = (SENTENCE, "push the green cylinder to the left", "lift the blue block")


@pytest.fixture(scope="module")
def reference():
    return make_reference([session(DeskArm(seed)) for seed in range(3)], robot="so101", source="the desk")


@pytest.fixture(scope="module")
def bundle():
    return read_bundle(find_bundle("nano-so101"))


def examine(planted, reference, bundle, root, seed):
    config = PairConfig(bundle="nano-so101", backend=planted.backend, traces=planted.traces or root / "runs")
    checks = examine_machine(bundle, config, planted.machine or healthy_machine(root / "machine"))
    evidence = session(PlantedRobot(DeskArm(seed), planted))
    checks += examine_evidence(evidence, NEEDS, reference)
    checks += examine_policy(PlantedPolicy(Listener(), planted), [m.seen for m in evidence.moments], SENTENCES)
    return checks


@pytest.mark.parametrize("seed", range(100, 102))
def test_a_sound_pair_has_nothing_wrong(seed, reference, bundle, tmp_path):
    checks = examine(Planted("none"), reference, bundle, tmp_path, seed)
    assert [str(check) for check in checks if check.status == "failed"] == []
    assert {check.name for check in checks if check.status in ("passed", "warning")} >= set(KINDS)


@pytest.mark.parametrize(("kind", "seed"), [*itertools.product(KINDS, range(110, 112))])
def test_a_planted_fault_is_named_and_no_other(kind, seed, reference, bundle, tmp_path):
    planted = plant(kind, seed, "so101", tmp_path)
    failed = [check for check in examine(planted, reference, bundle, tmp_path, seed) if check.status == "failed"]
    assert [check.name for check in failed] == [kind], (planted.form, failed)
    assert failed[0].remedy
