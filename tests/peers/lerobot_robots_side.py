"""Runs in lerobot's environment, with roboalign on PYTHONPATH; prints what it saw as one line of JSON.

python lerobot_robots_side.py theirs PORT FOLDER      lerobot's so101_follower as a roboalign Robot
python lerobot_robots_side.py ours ROBOT_FILE         a roboalign robot, made by lerobot's own plug-in loader
python lerobot_robots_side.py plugin TYPE FOLDER      a robot of an installed lerobot_robot_* package as ours
"""

import importlib
import json
import pkgutil
import sys
from pathlib import Path


def theirs(port, folder):
    import numpy as np

    from roboalign.drivers.lerobot import LeRobotDevice, adapt_lerobot, make_lerobot_device

    device = make_lerobot_device("so101_follower", port=port, id="arm", calibration_dir=Path(folder))
    handler = device.bus.port_handler

    def wait_longer(packet_length):
        handler.packet_start_time = handler.getCurrentTime()
        handler.packet_timeout = 5000.0

    handler.setPacketTimeout = wait_longer  # a busy machine may not give the server its 50 ms
    robot = adapt_lerobot(device)
    robot.connect()
    before = robot.observe(with_images=False)
    reasons = []
    for _ in range(4):
        reasons += robot.act(np.array((0.005, 0, 0, 0, 1), np.float32)).reasons
    for _ in range(40):
        robot.hold()
        after = robot.observe(with_images=False)
    robot.estop()
    robot.disconnect()
    return {
        "is_device": isinstance(device, LeRobotDevice),
        "before": before.state.tolist(),
        "after": after.state.tolist(),
        "reasons": reasons,
        "is_connected": device.is_connected,
    }


def ours(robot_file):
    from lerobot.robots import Robot, RobotConfig, make_robot_from_config

    # What lerobot.configs.parser.load_plugin does, without what else that module imports.
    package = importlib.import_module("roboalign.drivers.lerobot_plugin")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    config = RobotConfig.get_choice_class("roboalign")(file=robot_file, actions="joints", id="ours")
    robot = make_robot_from_config(config)
    features = {"observation": sorted(robot.observation_features), "action": sorted(robot.action_features)}
    robot.connect()
    try:
        seen = robot.get_observation()
        goal = {key: value for key, value in seen.items() if key in features["action"]}
        sent = robot.send_action(goal)
    finally:
        robot.disconnect()
    return {
        "is_robot": isinstance(robot, Robot),
        "name": robot.name,
        **features,
        "seen": sorted(seen),
        "goal": goal,
        "sent": sent,
        "is_connected": robot.is_connected,
    }


def plugin(kind, folder):
    from roboalign.drivers import check_robot
    from roboalign.drivers.lerobot import adapt_lerobot, make_lerobot_device

    report = check_robot(adapt_lerobot(make_lerobot_device(kind, id="arm", calibration_dir=Path(folder))))
    return {"checks": len(report.checks), "failed": [str(check) for check in report.failed]}


if __name__ == "__main__":
    print(json.dumps({"theirs": theirs, "ours": ours, "plugin": plugin}[sys.argv[1]](*sys.argv[2:])))
