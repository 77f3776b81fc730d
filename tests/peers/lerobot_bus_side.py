"""Runs in lerobot's environment: drives a virtual arm with lerobot's own bus classes and prints what it saw as JSON.

python lerobot_bus_side.py feetech|dynamixel PORT
"""

import json
import sys
import time

from lerobot.motors import Motor, MotorNormMode

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
PATIENCE_MS = 5000.0


def open_bus(protocol, port):
    models = ("sts3215",) * 6 if protocol == "feetech" else ("xl430-w250",) * 2 + ("xl330-m288",) * 4
    motors = {
        name: Motor(number, model, MotorNormMode.DEGREES)
        for number, (name, model) in enumerate(zip(NAMES, models, strict=True), start=1)
    }
    if protocol == "feetech":
        from lerobot.motors.feetech import FeetechMotorsBus as Bus
    else:
        from lerobot.motors.dynamixel import DynamixelMotorsBus as Bus
    bus = Bus(port, motors)

    def wait_longer(packet_length):
        bus.port_handler.packet_start_time = bus.port_handler.getCurrentTime()
        bus.port_handler.packet_timeout = PATIENCE_MS

    bus.port_handler.setPacketTimeout = wait_longer  # a busy machine may not give the server its 50 ms
    bus.connect()
    return bus


def drive(protocol, port):
    bus = open_bus(protocol, port)
    found = {"models": {name: bus.ping(name) for name in NAMES}}
    found["start"] = bus.sync_read("Present_Position", normalize=False)
    bus.disable_torque()
    if protocol == "dynamixel":  # homing offsets of more than a quarter turn need it, as lerobot's Koch does it
        for name in NAMES:
            bus.write("Operating_Mode", name, 4)
    bus.configure_motors()
    bus.reset_calibration()
    found["homings"] = bus.set_half_turn_homings()
    found["homed"] = bus.sync_read("Present_Position", normalize=False)
    bus.enable_torque()
    bus.sync_write("Goal_Position", dict.fromkeys(NAMES, 2100), normalize=False)
    for _ in range(60):
        found["moved"] = bus.sync_read("Present_Position", normalize=False)
    found["torque"] = bus.sync_read("Torque_Enable", normalize=False)
    bus.disconnect(disable_torque=True)
    return found


def ping_all(protocol, port):
    bus = open_bus(protocol, port)
    del bus.port_handler.setPacketTimeout
    start_s = time.monotonic()
    found = bus.broadcast_ping(num_retry=5)
    bus.port_handler.closePort()
    return {"models": found, "seconds": time.monotonic() - start_s}


print(json.dumps({"drive": drive, "ping_all": ping_all}[sys.argv[3]](sys.argv[1], sys.argv[2])))
