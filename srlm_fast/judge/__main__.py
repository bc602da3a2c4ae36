"""`python -m srlm_fast.judge`: the door to `srlm_fast.judge_command`, which needs more than the
judge package may import.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("srlm_fast.judge_command", run_name="__main__")
