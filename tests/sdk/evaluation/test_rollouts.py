import json
import time

import pytest
from evaluation_fakes import LineScene, WalkSetup

from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.evaluation.journal import Journal
from roboalign.sdk.evaluation.pictures import read_film
from roboalign.sdk.evaluation.results import episode_from_json, read_report
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate
from roboalign.sdk.libero.demonstrations import LiberoCollectConfig


def run(out, setup=None, **options):
    config = EvalConfig(out=out, **{"episodes": 10, "films": 0, **options})
    return evaluate(config, setup or WalkSetup(), LineScene())


def run_suite(out, setup=None, scene=None, **options):
    config = EvalConfig(out=out, **{"suite": "spatial", "trials": 2, "films": 0, **options})
    return evaluate(config, setup or WalkSetup(0.01), scene or LineScene())


def outcome(report):
    return report.seeds, report.successes, report.state_hashes


def test_two_evaluations_do_not_write_one_folder(tmp_path):
    """Both used to play and write every episode."""
    with one_writer(tmp_path / "e"), pytest.raises(ConfigError, match="being written by another process"):
        run(tmp_path / "e")


def test_families_take_turns_and_seeds_are_held_out(tmp_path):
    report = run(tmp_path)
    assert report.seeds == tuple(1_000_000_000 + i for i in range(10))
    assert [(result.task, result.num_episodes) for result in report.tasks] == [("place", 5), ("push", 5)]


def test_the_scenes_of_families_are_those_of_earlier_versions(tmp_path):
    """Seed = 1000000000 + number and task = number modulo tasks: results of earlier versions stay comparable."""
    config = EvalConfig(out=tmp_path, episodes=5, tasks=("place", "push", "stack"), first_episode=2)
    keys = [config.key(index) for index in range(3)]
    assert keys == [("stack", 1_000_000_002), ("place", 1_000_000_003), ("push", 1_000_000_004)]


def test_every_task_of_a_suite_gets_its_first_frozen_states(tmp_path):
    report = run_suite(tmp_path)
    assert [(result.task[:8], result.num_episodes) for result in report.tasks] == [("spatial/", 2)] * 10
    assert report.seeds == (1_000_000_000,) * 10 + (1_000_000_001,) * 10


def test_tasks_of_a_suite_may_be_chosen_by_their_short_names(tmp_path):
    report = run_suite(tmp_path, tasks=("left_of_bowl", "spatial/right_of_bowl"))
    assert [result.task for result in report.tasks] == ["spatial/left_of_bowl", "spatial/right_of_bowl"]


@pytest.mark.parametrize("name", ["7", "libero_object/7", "milk", "pick_up_the_milk_and_place_it_in_the_basket"])
def test_tasks_of_libero_are_named_as_when_demonstrations_are_collected(tmp_path, name):
    """A number was once an unknown task here, and all that `roboalign libero collect` was given."""
    tasks = EvalConfig(out=tmp_path, suite="libero_object", tasks=(name, "0")).tasks
    collected = LiberoCollectConfig(out=tmp_path, suite="libero_object", tasks=(name, "0")).tasks
    assert tasks == collected
    assert tasks[0] == "libero_object/7_pick_up_the_milk_and_place_it_in_the_basket"


def test_more_trials_extend_an_evaluation_of_a_suite(tmp_path):
    first = run_suite(tmp_path, trials=1)
    more = run_suite(tmp_path, trials=3)
    assert more.successes[:10] == first.successes
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 1 + 30 + 2


def test_the_scene_is_opened_as_the_settings_say(tmp_path):
    config = EvalConfig(out=tmp_path, suite="so101", split="language", randomization="mild", image_size_px=64)
    row = config.scene.describe()
    assert (row["robot"], row["split"], row["randomization"], row["image_size_px"]) == ("so101", "language", "mild", 64)


def test_goals_in_a_row_are_reported(tmp_path):
    report = run_suite(tmp_path, scene=LineScene(num_goals=5), trials=5)
    assert len(report.goals.rates) == 5
    assert report.goals.rates[4] == report.total.rate < report.goals.rates[0]
    assert report.goals.mean_length == pytest.approx(sum(report.goals.rates))


def test_chains_that_are_all_alike_still_have_an_interval(tmp_path):
    report = run_suite(tmp_path, WalkSetup(0.04), LineScene(num_goals=5))
    assert report.goals.mean_length == 5.0
    assert 3.5 < report.goals.mean_length_interval.low < 4.9


def test_what_was_randomised_is_kept_with_each_episode(tmp_path):
    run(tmp_path)
    line = (tmp_path / "episodes.jsonl").read_text().splitlines()[1]
    assert episode_from_json(line).domain == {"friction": 0.5}


def test_the_same_seeds_give_the_same_successes_and_hashes(tmp_path):
    assert outcome(run(tmp_path / "a", WalkSetup(0.01))) == outcome(run(tmp_path / "b", WalkSetup(0.01)))


def test_processes_change_nothing(tmp_path):
    alone, two = run(tmp_path / "a", WalkSetup(0.01)), run(tmp_path / "b", WalkSetup(0.01), workers=2)
    assert outcome(alone) == outcome(two)
    assert two.total.num_successes not in (0, 10)


def test_the_report_on_disk_is_the_report(tmp_path):
    report = run(tmp_path, WalkSetup(0.01, hold_every=3))
    assert read_report(tmp_path) == report
    assert report.who_acted.startswith("flow ")
    assert report.hold_reasons == {"nothing to say": report.total.num_holds}


def test_the_report_sums_up_the_episodes(tmp_path):
    report = run(tmp_path)
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    episodes = [episode_from_json(line) for line in lines[1:-1]]
    assert report.num_calls == sum(e.num_calls for e in episodes)
    assert report.total.mean_steps == sum(e.steps for e in episodes) / 10
    assert report.thought_share == 1.0
    assert report.latency_s["thought"].num == report.num_calls


@pytest.mark.parametrize("cut", [0, 7])
def test_an_interrupted_evaluation_goes_on(tmp_path, cut):
    whole = run(tmp_path / "whole", WalkSetup(0.01))
    lines = (tmp_path / "whole" / "episodes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    text = "".join(lines[:5]) + lines[5][:cut]
    (tmp_path / "cut" / "episodes.jsonl").write_text(text)
    assert outcome(run(tmp_path / "cut", WalkSetup(0.01))) == outcome(whole)
    assert (tmp_path / "cut" / "episodes.jsonl").read_text().startswith("".join(lines[:5]))


def test_a_finished_evaluation_is_not_run_again(tmp_path):
    run(tmp_path, WalkSetup(0.01))
    before = [line for line in (tmp_path / "episodes.jsonl").read_text().splitlines() if "wall_s" not in line[:9]]
    run(tmp_path, WalkSetup(0.01))
    after = [line for line in (tmp_path / "episodes.jsonl").read_text().splitlines() if "wall_s" not in line[:9]]
    assert before == after


def test_more_episodes_extend_an_evaluation(tmp_path):
    first = run(tmp_path, WalkSetup(0.01), episodes=4)
    more = run(tmp_path, WalkSetup(0.01), episodes=9)
    assert more.successes[:4] == first.successes
    assert more.total.num_episodes == 9


def test_another_policy_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, WalkSetup(0.01))
    with pytest.raises(ConfigError, match=r"policy step_m = 0.01, asked for 0.02; give another --out"):
        run(tmp_path, WalkSetup(0.02))


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match="replan_every"):
        run(tmp_path, replan_every=2)


@pytest.mark.parametrize("content", [b"hello\n", b"\xff\xfe\n", b'{"wall_s": 3}\n'])
def test_a_folder_with_another_jsonl_is_refused(tmp_path, content):
    (tmp_path / "episodes.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="give another --out"):
        run(tmp_path)


def test_an_attempt_without_an_episode_binds_nobody(tmp_path):
    """A policy that failed at once left a header: its mended version was another policy, and was refused."""
    with pytest.raises(DataError, match="broken on purpose"):
        run(tmp_path, WalkSetup(0.01, fails=True))
    assert run(tmp_path, WalkSetup(0.02)).policy["step_m"] == 0.02


def test_the_time_of_an_interrupted_run_counts(tmp_path, monkeypatch):
    """It was booked only by runs that came to their end, so a report that went on knew its last run alone."""
    append = Journal.append

    def stop_at_the_third(journal, episode):
        if len(journal.episodes) == 2:
            time.sleep(0.2)
            raise KeyboardInterrupt
        append(journal, episode)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    start_s = time.perf_counter()
    report = run(tmp_path)
    assert report.wall_s > 0.2
    assert report.wall_s < 5.0 + time.perf_counter() - start_s
    assert report.total.num_episodes == 10


def test_an_error_in_a_worker_reaches_the_caller(tmp_path):
    with pytest.raises(DataError, match="broken on purpose"):
        run(tmp_path, WalkSetup(fails=True), workers=2)


def test_a_worker_that_dies_is_explained(tmp_path):
    with pytest.raises(BackendError, match="1 worker"):
        run(tmp_path, WalkSetup(dies=True), workers=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "at least 1"),
        ({"workers": 0}, "at least 1"),
        ({"films": -1}, "0 or more"),
        ({"replan_every": 0}, "at least 1"),
        ({"tasks": ("plase",)}, "did you mean place"),
        ({"tasks": ("place", "place")}, "twice"),
        ({"split": "languge"}, "did you mean language"),
        ({"robot": "so10"}, "did you mean so101"),
        ({"suite": "spatal"}, "did you mean spatial"),
        ({"suite": "spatial", "tasks": ("left_of_bow",)}, "did you mean left_of_bowl"),
        ({"suite": "libero_object", "tasks": ("10",)}, "task '10' of suite libero_object is unknown"),
        ({"suite": "libero_object", "tasks": ("7", "milk")}, "twice"),
        ({"suite": "spatial", "robot": "so101"}, "laid out for the arm panda"),
        ({"suite": "spatial", "trials": 51}, "at most 50 trials"),
        ({"suite": "spatial", "episodes": 5}, "give trials"),
        ({"trials": 5}, "give episodes"),
        ({"randomization": "mid"}, "mild"),
        ({"image_size_px": 4}, "16 to 1024"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        EvalConfig(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_first_successes_and_the_first_failures_are_shown(tmp_path):
    report = run(tmp_path, WalkSetup(0.01), films=2, workers=2)
    strips = [read_film(tmp_path / name) for name in report.films]
    first = [
        [seed for seed, ok in zip(report.seeds, report.successes, strict=True) if ok is wanted][:2]
        for wanted in (True, False)
    ]
    assert [strip.seed for strip in strips] == first[0] + first[1]
    assert [strip.success for strip in strips] == [True, True, False, False]
    assert all(strip.is_repeated for strip in strips)


def test_a_film_strip_spans_the_episode(tmp_path):
    strip = read_film(tmp_path / run(tmp_path, films=1).films[0])
    assert (strip.frames[0].step, strip.frames[-1].step) == (0, strip.steps)
    assert strip.frames[0].thought == "move 1"


def test_videos_of_the_first_episodes_are_written(tmp_path):
    report = run(tmp_path, videos=2)
    assert [name.rpartition(".")[0] for name in report.videos] == ["videos/place-1000000000", "videos/push-1000000001"]
    assert all((tmp_path / name).stat().st_size > 500 for name in report.videos)


def test_what_is_shown_already_is_not_played_again(tmp_path):
    run(tmp_path, films=1, videos=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/*") if path.is_file()}
    run(tmp_path, films=1, videos=1)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/*") if path.is_file()}


def test_a_report_of_another_version_is_refused_by_its_number(tmp_path):
    run(tmp_path)
    row = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**row, "format_version": 99}))
    with pytest.raises(DataError, match="version 99"):
        read_report(tmp_path)


def test_a_report_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a report"):
        read_report(tmp_path)


def test_a_missing_report_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="roboalign eval"):
        read_report(tmp_path / "nothing")
