"""Run by the benchmark's own Python: soft resets against `OffScreenRenderEnv`; prints `equal` when every bit is."""

import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
import server

CAMERA = "agentview"


def run(env, reset, states) -> list[bytes]:  # type: ignore[no-untyped-def] # the benchmark is not typed
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 7))
    found = []
    for seed, number in ((5, 0), (6, 1), (5, 0), (7, None)):
        reset(seed, None if number is None else states[number])
        for action in actions:
            env.step(action)
        picture = env.sim.render(camera_name=CAMERA, width=64, height=64)
        found += [env.get_sim_state().tobytes(), np.asarray(picture).tobytes()]
    return found


def main(suite: str, number: int) -> None:
    from libero.libero import benchmark
    from libero.libero.envs import OffScreenRenderEnv

    tasks = benchmark.get_benchmark(suite)()
    scene = server.Scene(suite, tasks.get_task_names()[number])

    def soft(seed, state):  # type: ignore[no-untyped-def]
        scene.env.seed(seed)
        scene.inner.reset()
        if state is not None:
            scene.env.set_init_state(state)

    ours = run(scene.env, soft, scene.init_states)
    env = OffScreenRenderEnv(bddl_file_name=scene.bddl_file, camera_heights=64, camera_widths=64)

    def hard(seed, state):  # type: ignore[no-untyped-def]
        env.seed(seed)
        env.reset()
        if state is not None:
            env.set_init_state(state)

    theirs = run(env, hard, scene.init_states)
    print(
        "equal" if ours == theirs else f"different: {[a == b for a, b in zip(ours, theirs, strict=True)]}", flush=True
    )


if __name__ == "__main__":
    main(sys.argv[2], int(sys.argv[3]))
    import os

    os._exit(0)  # robosuite's render context complains when the interpreter takes it apart
