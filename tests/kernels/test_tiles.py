"""The int32 tile of each instruction set, compiled alone and compared with a plain loop."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from int8pass import torch_private
from int8pass.kernels.cpu import build

SOURCE = Path(__file__).with_name("tile_check.cpp")
HEADERS = Path(build.__file__).parent
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"

pytestmark = pytest.mark.skipif(bool(torch_private.cxx_compiler_error()), reason="needs a C++ compiler")


def compiled(folder, compiler, *flags):
    program = folder / "tile_check"
    command = [compiler, "-O3", "-std=c++20", *flags, f"-I{HEADERS}", str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return str(program)


def printed(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def test_plain_tile_is_exact(tmp_path):
    baseline = ("-DINT8PASS_PORTABLE",)
    assert printed(compiled(tmp_path, torch_private.cxx_compiler(), *baseline)) == "portable"


@pytest.mark.skipif("avx2" not in build.processor_flags().split(), reason="this processor has no AVX2")
def test_avx2_tile_is_exact(tmp_path):
    assert printed(compiled(tmp_path, torch_private.cxx_compiler(), "-mavx2")) == "AVX2"


VNNI_FLAGS = {"avx512f", "avx512bw", "avx512_vnni"}


@pytest.mark.skipif(not set(build.processor_flags().split()) >= VNNI_FLAGS, reason="this processor has no AVX-512 VNNI")
def test_vnni_tile_is_exact(tmp_path):
    flags = ("-mavx512f", "-mavx512bw", "-mavx512vnni")
    assert printed(compiled(tmp_path, torch_private.cxx_compiler(), *flags)) == "AVX-512 VNNI"


def test_arm_tile_is_exact(tmp_path):
    if platform.machine() == "aarch64":
        assert printed(compiled(tmp_path, torch_private.cxx_compiler(), "-march=armv8.2-a+dotprod")) == "NEON"
        return
    if not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)):
        pytest.skip("needs an ARM processor, or the packages g++-aarch64-linux-gnu and qemu-user-static")
    program = compiled(tmp_path, ARM_COMPILER, "-march=armv8.2-a+dotprod", "-static")
    assert printed(ARM_EMULATOR, program) == "NEON"
