"""Run an action in a process of its own and kill it after some seconds; shared by the programs that kill."""

import os
import signal
import sys
import time


def in_child(action, kill_after=None):
    """Run an action in a forked process; returns whether it was killed.

    A child that fails by itself prints why, and stops the program.
    """
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status)
