"""`python -m roboalign.drivers.arm FD PID`: the bus owner, started by `roboalign.drivers.arm.owner.ProcessLink`."""

import sys

from roboalign.drivers.arm.owner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
