"""Build the CUDA stand-in: `python tests/gpu/standin/build.py FOLDER`.

libfakecuda.so (for LD_PRELOAD) is fakecuda.c and, for every other function that the installed torch
asks of CUDA's libraries, a stub that answers 0. libcuda.so.1 beside it has the driver's names.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = (
    "torch_cuda",
    "c10_cuda",
    "torch_python",
    "torch_cpu",
    "torch_cuda_linalg",
    "caffe2_nvrtc",
)
CUDAS = re.compile(
    r"^(__cuda|cuda|cu|cublas|cudnn|nccl|cusparse|cusolver|cufft|curand|nvrtc|nvshmem|cusparseLt|cuFile)[A-Z_]"
)
# Not asked for in training classifiers: the real ones stay.
LEFT_ALONE = re.compile(r"^(cusparse|cusolver|cufft|curand|cuFile|nvshmem)")
# Calls that compute: they are counted as device operations.
COMPUTES = re.compile(
    r"[Gg]emm|Matmul$|BackendExecute|BatchNormalization(Forward|Backward)|ncclAllReduce|ncclB(road)?cast"
    r"|ncclReduce|ncclAllGather|Pooling(Forward|Backward)|SoftmaxForward|Convolution(Forward|Backward)"
)


def wanted(torch: Path) -> dict[str, str]:
    """Return the functions that torch's libraries want of CUDA's, and which wants each."""
    found = {}
    for name in LIBRARIES:
        path = torch / "lib" / f"lib{name}.so"
        command = ["nm", "-D", "--undefined-only", str(path)]
        listed = subprocess.run(command, capture_output=True, text=True).stdout
        for line in listed.splitlines():
            symbol = line.split()[-1].split("@")[0]
            if CUDAS.match(symbol):
                found[symbol] = name
    return found


def stubs(symbols: list[str]) -> str:
    """Return C with a function of each name that answers 0."""
    lines = [
        "void fake_library(const char *);",
        '#define OUT __attribute__((visibility("default")))',
    ]
    for symbol in symbols:
        counts = "fake_library(__func__); " if COMPUTES.search(symbol) else ""
        lines.append(f"OUT long {symbol}(void) {{ {counts}return 0; }}")
    return "\n".join(lines) + "\n"


def build(out: Path) -> None:
    """Write both libraries into `out`.

    Raises CalledProcessError, StopIteration where parts lack.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    site = torch.parent

    # The headers of the CUDA that torch was built with; triton's have the crt/ that the wheel
    # lacks.
    headers = next(path.parent for path in (site / "nvidia").rglob("cuda_runtime_api.h"))
    more = site / "triton" / "backends" / "nvidia" / "include"
    compiler = ["gcc", "-O1", "-w", "-fPIC", "-fno-builtin"]
    compiler += ["-I", str(headers), "-idirafter", str(more)]
    ours = out / "fakecuda.o"
    subprocess.run([*compiler, "-c", str(HERE / "fakecuda.c"), "-o", str(ours)], check=True)
    # As compiled: the headers rename some functions (to ..._v2), others in each release.
    command = ["nm", "--defined-only", "--extern-only", "--format=just-symbols", str(ours)]
    own = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())

    symbols = wanted(torch)
    missing = sorted(name for name in symbols if name not in own and not LEFT_ALONE.match(name))
    driver = [name for name in missing if re.match(r"^cu[A-Z]", name)]
    (out / "stubs.c").write_text(stubs(missing))
    (out / "driver.c").write_text(
        "".join(f"long {name}(void) {{ return 0; }}\n" for name in driver)
    )
    library = ["-o", str(out / "libfakecuda.so"), "-lpthread", "-ldl"]
    subprocess.run([*compiler, "-shared", str(ours), str(out / "stubs.c"), *library], check=True)

    # What is no driver function of ours is reached by way of libfakecuda.so.
    link = ["-Wl,--no-as-needed", f"-L{out}", "-l:libfakecuda.so", "-Wl,-rpath,$ORIGIN"]
    link += ["-Wl,-soname,libcuda.so.1", "-o", str(out / "libcuda.so.1")]
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", str(out / "driver.c"), *link], check=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    build(folder)
