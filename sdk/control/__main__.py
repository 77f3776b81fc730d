"""What `child.Child` starts: `python -m roboalign.sdk.control ROLE FD PID`."""

import sys

from roboalign.sdk.control.child import Parent
from roboalign.sdk.control.policy_process import serve_policy

if __name__ == "__main__":
    ROLES = {"policy": serve_policy}
    ROLES[sys.argv[1]](Parent(int(sys.argv[2])), int(sys.argv[3]))
