"""`python -m srlm_fast.data`: the door to `srlm_fast.data_command`, which needs more than the data
package may import.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("srlm_fast.data_command", run_name="__main__")
