"""`python -m srlm_fast.report`: the door to `srlm_fast.report_command`, which needs more than the
report package may import.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("srlm_fast.report_command", run_name="__main__")
