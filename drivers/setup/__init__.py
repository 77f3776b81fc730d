"""From a box of servos to a moving arm: ids, calibration, teleoperation, recording, and running a bundle."""
