"""Policies judged on a robot by a scripted person: what is asked, what is kept, and what nobody is told too early."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tests.drivers.arm.rig import write_files
from tests.drivers.setup_bench import Person

from roboalign.cli.main import main
from roboalign.drivers.arm.files import CameraFile, write_robot_file
from roboalign.drivers.arm.loading import load_robot
from roboalign.drivers.setup.trials import RobotContender, TrialConfig, contender_for, evaluate_on_robot, scenes_of
from roboalign.drivers.virtual.config import VirtualBusConfig
from roboalign.drivers.virtual.process import VirtualBus
from roboalign.sdk.bundle import find_bundle
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import PolicyRecipe
from roboalign.sdk.errors import CheckFailed, ConfigError, DataError, RobotError
from roboalign.sdk.evaluation import compare, gap, named_policy, read_report
from roboalign.sdk.evaluation.gap_inputs import outcomes_of, read_policies
from roboalign.sdk.evaluation.rollouts import EvalConfig
from roboalign.sdk.sim.so101 import so101_spec

RUN = RunReport(ticks=30, misses=0, moved=30, reasons={}, notes={}, changes={}, chunks=4)
DONE = {"s": ("", "s", ""), "f": ("", "f", "40", "dropped it")}


class Arm:
    """A robot that nobody opens: runs are played by `Runs`."""

    spec = so101_spec()


class Runs:
    """Notes which policy was run with which words; may fail at one run."""

    def __init__(self, fails_at=None):
        self.names, self.sentences, self.sessions, self.fails_at = [], [], [], fails_at

    def __call__(self, contender, sentence, session):
        if len(self.names) == self.fails_at:
            raise RobotError("servo 3 stopped answering")
        self.names.append(contender.described["name"])
        self.sentences.append(sentence)
        self.sessions.append(session)
        return RUN


def contender(name="alpha"):
    return RobotContender(described={"name": name, "kind": "bundle", "actions": "flow"}, recipe=PolicyRecipe())


def config(tmp_path, **more):
    return TrialConfig(**{"out": tmp_path / "real", "arm": "so101", "sentence": "lift it", "episodes": 3, **more})


def person(*runs, before=("yes",)):
    return Person([*before, *(answer for run in runs for answer in DONE.get(run, run))])


def judge(tmp_path, who, *, runs=None, names=("alpha",), **more):
    found = [contender(name) for name in names]
    return evaluate_on_robot(Arm(), found, config(tmp_path, **more), who, play=runs or Runs())


def test_one_policy_is_judged_and_reported(tmp_path):
    result = judge(tmp_path, person("s", "f", "s"))
    report = read_report(tmp_path / "real")
    assert result.reports == (report,)
    assert (report.world, report.successes, report.progresses) == ("robot", (True, False, True), (1.0, 0.4, 1.0))
    assert (report.seeds, report.task_names) == ((0, 1, 2), ("lift it",) * 3)
    assert 0.1 < report.total.interval.low < 0.4
    lines = (tmp_path / "real" / "trials.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["note"] == "dropped it"
    page = (tmp_path / "real" / "report.html").read_text()
    assert "2 of 3 runs on the robot" in page
    assert "judged by a person who knew which policy acted" in page
    assert "simulated scene" not in page


def test_the_robot_is_asked_for_once_and_a_no_opens_nothing(tmp_path):
    runs = Runs()
    with pytest.raises(CheckFailed, match="nothing has moved"):
        judge(tmp_path, Person(["no"]), runs=runs)
    assert runs.names == []
    who = person("s", "s", "s")
    judge(tmp_path, who)
    assert sum("The arm will move" in question for question in who.asked) == 1


def test_an_evaluation_goes_on_and_asks_for_nothing_twice(tmp_path):
    first = judge(tmp_path, person("s", ("q",)))
    assert (first.num_done, first.is_complete, len(first.reports)) == (1, False, 1)
    runs, who = Runs(), person("f", "s")
    assert judge(tmp_path, who, runs=runs).is_complete
    assert len(runs.names) == 2
    assert "run 2 of 3, scene 2: lift it" in who.said
    nobody, none = Runs(), Person([])
    again = judge(tmp_path, none, runs=nobody)
    assert (nobody.names, none.asked) == ([], [])
    assert again.reports[0].successes == (True, False, True)
    more = judge(tmp_path, person("f"), episodes=4)
    assert more.reports[0].total.num_episodes == 4


def test_a_discarded_run_is_repeated_and_counted(tmp_path):
    runs = Runs()
    result = judge(tmp_path, person(("", "d", "the block rolled off"), "s", "s", "s"), runs=runs)
    assert len(runs.names) == 4
    assert result.reports[0].total.num_episodes == 3
    assert result.reports[0].config["discarded"] == 1


def test_an_answer_that_is_none_is_asked_again(tmp_path):
    who = person(("", "good", "f", "150", "much", "50", ""), "s", "s")
    result = judge(tmp_path, who)
    assert result.reports[0].progresses[0] == 0.5
    assert "found 'good', expected one of s, f, d, q" in who.said
    assert "found '150', expected a number from 0 to 100" in who.said


@pytest.mark.parametrize("error", [KeyboardInterrupt, RobotError])
def test_what_was_entered_outlives_whatever_ends_it(tmp_path, error):
    def stop(_):
        raise error("stopped")

    with pytest.raises(error):
        judge(tmp_path, person("s", ("", stop)))
    assert judge(tmp_path, person("f", "f")).reports[0].successes == (True, False, False)


@pytest.mark.parametrize(("answers", "progress"), [(("", "f"), 0.0), (("", "f", "40"), 0.4), (("", "s"), 1.0)])
def test_an_interruption_at_the_note_costs_the_note_alone(tmp_path, answers, progress):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(tmp_path, person((*answers, stop)))
    report = judge(tmp_path, person("f", "f")).reports[0]
    assert (len(report.successes), report.progresses[0]) == (3, progress)


def test_a_robot_that_stops_answering_leaves_the_outcomes(tmp_path):
    who = person("s", "f", ("",))
    with pytest.raises(RobotError, match="servo 3 stopped answering"):
        judge(tmp_path, who, runs=Runs(fails_at=2))
    assert any(line.startswith("2 outcomes are in") for line in who.said)


def test_an_outcome_entered_twice_is_refused(tmp_path):
    judge(tmp_path, person("s", ("q",)))
    path = tmp_path / "real" / "trials.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ConfigError, match="trial 0 of policy 0 was entered twice"):
        judge(tmp_path, person("s", "s"))


def test_an_outcome_is_kept_when_an_editor_leaves_out_the_last_line_end(tmp_path):
    judge(tmp_path, person("s", "f", ("q",)))
    path = tmp_path / "real" / "trials.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    assert judge(tmp_path, person("s")).reports[0].successes == (True, False, True)
    path.write_text(path.read_text()[:-20])  # cut while it was written
    assert judge(tmp_path, person("f")).reports[0].successes == (True, False, False)


@pytest.mark.parametrize("line", ["nothing", "[1]", '{"trial": 7}'])
def test_a_damaged_journal_is_refused(tmp_path, line):
    judge(tmp_path, person(("q",)))
    with (tmp_path / "real" / "trials.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match="delete that line"):
        judge(tmp_path, person())


def test_another_policy_in_the_folder_is_refused(tmp_path):
    judge(tmp_path, person(("q",)))
    with pytest.raises(ConfigError, match="give another --out"):
        judge(tmp_path, person(), names=("beta",))


def test_two_policies_act_in_disguise_on_the_same_scenes(tmp_path):
    runs, who = Runs(), person(*["s"] * 24)
    result = judge(tmp_path, who, runs=runs, names=("alpha", "beta"), episodes=12)
    pairs = list(zip(runs.names[::2], runs.names[1::2], strict=True))
    assert all(set(pair) == {"alpha", "beta"} for pair in pairs)
    assert len(set(pairs)) == 2  # both orders; by chance alone once in 2048 evaluations they are all alike
    assert not any(name in line for line in who.said + who.asked for name in ("alpha", "beta"))
    assert all(session.policy == "the policy" and not session.is_spoken for session in runs.sessions)
    assert result.comparison.total.num_pairs == 12
    first, second = (read_report(tmp_path / "real" / name) for name in ("first", "second"))
    assert (first.policy["name"], second.policy["name"]) == ("alpha", "beta")
    assert compare(first, second).total == result.comparison.total
    assert "alpha against beta" in (tmp_path / "real" / "compare.html").read_text()
    assert "did not know which policy acted" in (tmp_path / "real" / "first" / "report.html").read_text()


def test_outcomes_go_to_the_policy_that_acted(tmp_path):
    """The person always sees alpha succeed and beta fail, whichever comes first."""
    runs = Runs()

    def outcome(_):
        return "s" if runs.names[-1] == "alpha" else "f"

    def more(question):
        return "0" if "how much" in question else ""

    class Watcher(Person):
        def ask(self, question):
            self.asked.append(question)
            if "The arm will move" in question:
                return "yes"
            return outcome(question) if "how did it go" in question else more(question)

    result = judge(tmp_path, Watcher([]), runs=runs, names=("alpha", "beta"), episodes=8)
    assert [report.successes for report in result.reports] == [(True,) * 8, (False,) * 8]
    assert result.comparison.total.p_value == pytest.approx(2 / 256)
    assert result.comparison.verdict.startswith("alpha is better than beta")


def test_nobody_is_told_before_all_pairs_are_done(tmp_path):
    result = judge(tmp_path, person("s", "s", "s", ("q",)), names=("alpha", "beta"))
    assert (result.num_done, result.reports, result.comparison) == (1, (), None)
    assert not (tmp_path / "real" / "first").exists()
    assert judge(tmp_path, person(), names=("alpha", "beta"), episodes=1).is_complete


def test_a_policy_against_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="both policies are alpha"):
        judge(tmp_path, person(), names=("alpha", "alpha"))


def test_a_copy_of_a_policy_under_another_name_is_refused(tmp_path):
    """What lies beside a bundle's files, such as a reference of the doctor, makes no other policy of it."""
    copy = shutil.copytree(find_bundle("nano-so101"), tmp_path / "mine")
    (copy / "reference.json").write_text("{}")
    file = write_files(tmp_path)
    same = [contender_for(file, named_policy(name)) for name in ("nano-so101", str(copy))]
    with pytest.raises(ConfigError, match=r"nano-so101 and .*mine are the same policy"):
        evaluate_on_robot(Arm(), same, config(tmp_path), person(), play=Runs())
    assert not (tmp_path / "real").exists()
    other = contender_for(file, named_policy(str(copy), actions="fast"))
    who = person(*["s"] * 6)
    assert evaluate_on_robot(Arm(), [same[0], other], config(tmp_path), who, play=Runs()).is_complete


def test_scenes_are_those_of_the_evaluation_in_simulation(tmp_path):
    wanted = config(tmp_path, sentence=None, tasks=("place", "push"), episodes=4)
    simulated = EvalConfig(out=tmp_path, tasks=("place", "push"), episodes=4, robot="so101")
    assert [(scene.task, scene.seed) for scene in scenes_of(wanted)] == [simulated.key(k) for k in range(4)]
    assert all("block" in " ".join(scene.places) or "cylinder" in " ".join(scene.places) for scene in scenes_of(wanted))


def test_a_person_sees_what_stands_where(tmp_path):
    pytest.importorskip("pybullet")
    who = person("s")
    judge(tmp_path, who, sentence=None, tasks=("place",), episodes=1)
    scene = scenes_of(config(tmp_path, sentence=None, tasks=("place",), episodes=1))[0]
    assert all(f"  {place}" in who.said for place in scene.places)
    picture = tmp_path / "real" / "scenes" / "000.png"
    assert f"  {picture}" in who.said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_reports_of_robots_feed_the_gap(tmp_path):
    """Two policies judged on the scenes of a simulation, whose reports are copies that say so."""
    folders = {"sim": {}, "real": {}}
    for name, runs in (("alpha", ["s"] * 4), ("beta", ["s", "f", "f", "f"])):
        real = tmp_path / name
        judge(real, person(*runs), names=(name,), sentence=None, tasks=("place",), episodes=4)
        sim = shutil.copytree(real / "real", tmp_path / f"{name}-sim")
        row = json.loads((sim / "report.json").read_text())
        (sim / "report.json").write_text(json.dumps({**row, "world": "simulation"}))
        folders["sim"][name], folders["real"][name] = [sim], [real / "real"]
    report = gap(read_policies(**folders), num_resamples=50)
    assert (report.mmrv.value, report.num_shared) == (0.0, 4)
    again = [read_report(folders["real"]["alpha"][0])] * 2
    with pytest.raises(ConfigError, match="entered twice"):
        outcomes_of(again, ["a", "b"])


def test_what_acts_in_simulation_alone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expert is a expert policy, which acts in simulation"):
        contender_for(write_files(tmp_path), named_policy("expert"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--robot", "robot.toml"], "a robot needs a policy for its own arm"),
        (["nano-so101", "--robot", "robot.toml", "--suite", "spatial", "--blind"], "--suite, a control: only in sim"),
        (["nano-so101", "--robot", "robot.toml", "--films", "2"], "--films: only in simulation"),
        (["nano-so101", "--robot", "robot.toml", "--image-size", "64"], "--image-size: only in simulation"),
        (["nano-so101", "--robot", "robot.toml", "--task", "lift", "--tasks", "push"], "--task and --tasks"),
        (["nano-so101", "--against", "nano"], "--against: only on a robot"),
        (["nano-so101", "--yes", "--seconds", "5"], "--yes, --seconds: only on a robot"),
        (["nano-so101", "--robot", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_the_verb_refuses_what_does_not_go_together(args, message, capsys):
    assert main(["eval", *args]) == 2
    assert message in capsys.readouterr().err


class Impatient(Person):
    """Presses Enter a few periods into the second run."""

    def __init__(self, answers):
        super().__init__(answers)
        self.runs = self.calls = 0

    def ask(self, question):
        self.runs += "set the scene" in question
        self.calls = 0
        return super().ask(question)

    def is_done(self):
        self.calls += 1
        return self.runs == 2 and self.calls > 6


@pytest.mark.slow
def test_a_bundle_is_judged_on_the_virtual_serial_arm(tmp_path):
    """Two runs through the same session as `roboalign run --robot`; the second one ends when Enter is pressed."""
    file = replace(write_files(tmp_path), port=str(tmp_path / "arm"), cameras={"front": CameraFile(device="pattern")})
    write_robot_file(tmp_path / "robot.toml", replace(file, park_after_s=3.0))
    bus_config = VirtualBusConfig(robot="so101", is_lockstep=False, has_physics=False)
    with VirtualBus(tmp_path / "arm", bus_config) as bus:
        who = Impatient(["yes", "", "s", "", "", "f", "10", "missed"])
        found = evaluate_on_robot(
            load_robot(tmp_path / "robot.toml"),
            [contender_for(file, named_policy("nano-so101"))],
            config(tmp_path, episodes=2, seconds=2.0),
            who,
        )
        state = bus.control.state()
    report = found.reports[0]
    assert report.successes == (True, False)
    assert report.acted["flow"] >= 2
    rows = [json.loads(line) for line in (tmp_path / "real" / "trials.jsonl").read_text().splitlines()]
    assert [row["stopped_by"] for row in rows[1:]] == ["max_ticks", "until"]
    assert rows[1]["steps"] == 20
    assert rows[2]["steps"] <= 6
    park = so101_spec().park_joint_pos_rad
    assert float(np.abs(np.array(state["position_rad"][:5]) - park).max()) < 0.1
    assert not any(state["has_torque"])
    assert sum("parking" in line for line in who.said) == 2
