"""Builds the native extension; everything else stands in pyproject.toml.

The extension needs no torch at build time: tensors cross as addresses and NumPy arrays. Its
kernels are compiled once per instruction-set level (`target_clones`) and picked at load time,
so a wheel built here runs on any CPU of the same architecture.
"""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.hpp"))
# Contraction to fused multiply-add is asked for by name: a row's bits must not depend on whether
# the compiler happens to default to it.
OPTIONS = ["-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-g0", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform.startswith("linux") else []

ParallelCompile("SRLM_FAST_BUILD_JOBS").install()
setup(
    ext_modules=[
        Pybind11Extension(
            "srlm_fast._native",
            SOURCES,
            depends=HEADERS,
            cxx_std=17,
            extra_compile_args=OPTIONS + OPENMP,
            extra_link_args=OPENMP,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
