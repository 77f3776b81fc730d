"""Serial arms: models, calibration, units, the safety of motion, and the process that owns the bus."""
