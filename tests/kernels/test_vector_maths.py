import subprocess
import sys
import textwrap

import pytest

# MKL reads this variable where it looks up the processor. 9 is what an Intel CPU with AVX-512 is
# known by until the lookup has ended, so the variable does on purpose what the race does by chance.
CHILDREN = textwrap.dedent("""
    import math, os, torch

    def largest_error(ready):
        if ready:
            import srlm_fast.kernels
        os.environ["MKL_VML_DEBUG_CPU_TYPE"] = "9"
        x = torch.arange(512) / 8
        wanted = torch.tensor([math.cos(value) for value in x.tolist()])
        return float((x.cos() - wanted).abs().max())

    for ready in (False, True):
        if os.fork() == 0:
            print(largest_error(ready), flush=True)
            os._exit(0)
        os.wait()
""")


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_the_first_cosines_of_a_process_have_all_their_digits():
    found = subprocess.run(
        [sys.executable, "-c", CHILDREN], capture_output=True, text=True, check=True
    )
    before, after = map(float, found.stdout.split())
    if before < 1e-5:
        pytest.skip("this torch computes without MKL, or MKL without the fault")
    assert after < 1e-6
