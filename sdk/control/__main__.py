"""What `child.Child` starts: `python -m roboalign.sdk.control ROLE FD BELL PID`."""

import sys

from roboalign.sdk.control.child import Parent

if __name__ == "__main__":
    role, parent, pid = sys.argv[1], Parent(int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4])
    if role == "policy":
        from roboalign.sdk.control.policy_process import serve_policy

        serve_policy(parent, pid)
    else:
        from roboalign.sdk.control.recorder import serve_recorder

        serve_recorder(parent, pid)
