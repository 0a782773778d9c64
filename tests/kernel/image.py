"""What the virtual machine boots: a distribution's kernel, fetched once and unpacked, and a small initrd."""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KERNEL_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
"""Debian's and Ubuntu's kernels for virtual machines. Debian's is the one that was tried: a 27 MB package."""

EARLY_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay")
"""Loaded before the host's files, and modprobe with them, are there."""

NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "depmod": "kmod"}
"""Program -> Debian package."""

GUEST = Path(__file__).with_name("guest")
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often not in a user's PATH


class VmError(Exception):
    """No machine can be made here; the text says why, and what to do."""


def program(name: str, *places: str) -> str:
    """The path of a program, looked for in `places` first. Raises VmError naming its package."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *_SBIN])
    for place in (*places, name):
        if found := shutil.which(place, path=path):
            return found
    raise VmError(f"{name} is missing: apt-get install {NEEDED.get(name, name)}")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: `vmlinuz`, and lib/modules/VERSION with its index."""

    directory: Path

    @property
    def image(self) -> Path:
        """The kernel itself."""
        return self.directory / "vmlinuz"

    @property
    def modules(self) -> Path:
        """lib/modules/VERSION."""
        return next((self.directory / "lib/modules").iterdir())

    def order(self, names: tuple[str, ...]) -> list[Path]:
        """The files of these modules and of all that they need, in loading order. Built-in ones have none."""
        needs: dict[str, list[str]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, rest = line.partition(":")
            needs[_module_name(path)] = [path, *rest.split()]
        built_in = {
            _module_name(line) for line in (self.modules / "modules.builtin").read_text().splitlines()
        }
        ordered: list[str] = []
        for name in names:
            if name not in needs and name not in built_in:
                raise VmError(
                    f"the kernel in {self.directory} has no module {name}: give another by --kernel DIR"
                )
            # modules.dep lists needs nearest first.
            ordered += [path for path in reversed(needs.get(name, [])) if path not in ordered]
        return [self.modules / path for path in ordered]


def _module_name(path: str) -> str:
    return re.sub(r"\.ko.*", "", Path(path).name).replace("-", "_")


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One at a time: two runs that start together must not both fetch and unpack."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch_kernel(cache: Path, *, refresh: bool = False) -> Kernel:
    """The kernel in `cache`; from the distribution's archive if there is none yet. Raises VmError."""
    stamp = cache / "current"
    if stamp.exists() and not refresh and (known := Kernel(cache / stamp.read_text())).image.exists():
        return known
    package = _real_package()
    directory = cache / package
    if not directory.exists():
        print(f"vm: fetching {package}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _unpack(package, Path(temporary)).rename(directory)
    stamp.write_text(package)
    return Kernel(directory)


def _apt(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=600)
    if done.returncode:
        raise VmError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()} (has `apt-get update` been run? "
            f"On other systems give a kernel by --kernel DIR: DIR/vmlinuz, DIR/lib/modules/VERSION)"
        )
    return done.stdout


def _real_package() -> str:
    """The package that the distribution's meta-package stands for now."""
    for meta in KERNEL_PACKAGES:
        found = re.findall(r"Depends: (linux-image-\d\S+)", _apt("apt-cache", "depends", meta))
        if found:
            return str(found[0])
    raise VmError(f"apt knows none of {', '.join(KERNEL_PACKAGES)}: apt-get update, or --kernel DIR")


def _unpack(package: str, temporary: Path) -> Path:
    """Download and unpack, never install. -> a directory as `Kernel` wants it, inside `temporary`"""
    wanted = [package]
    # Ubuntu has the modules in a package of their own.
    wanted += re.findall(r"Depends: (linux-modules-\d\S+)", _apt("apt-cache", "depends", package))
    _apt("apt-get", "-q", "download", *wanted, cwd=temporary)
    unpacked, result = temporary / "unpacked", temporary / "result"
    for archive in temporary.glob("*.deb"):
        _apt("dpkg-deb", "-x", str(archive), str(unpacked))
    modules = next(path for path in (unpacked / "lib/modules", unpacked / "usr/lib/modules") if path.exists())
    version = next(modules.iterdir())
    (result / "lib/modules").mkdir(parents=True)
    next((unpacked / "boot").glob("vmlinuz-*")).rename(result / "vmlinuz")
    version.rename(result / "lib/modules" / version.name)
    subprocess.run([program("depmod"), "-b", str(result), version.name], check=True, timeout=120)
    return result


def make_initrd(kernel: Kernel, cache: Path) -> Path:
    """An uncompressed cpio archive of busybox, init and the early modules; kept until one of them changes."""
    busybox = Path(program("busybox"))
    early = kernel.order(EARLY_MODULES)
    names = [path.name.partition(".ko")[0] + ".ko" for path in early]
    init = (GUEST / "init.sh").read_bytes()
    seed = repr((init, [str(path) for path in early], busybox.stat().st_mtime_ns, busybox.stat().st_size))
    initrd = cache / f"initrd-{hashlib.sha256(seed.encode()).hexdigest()[:16]}"
    if initrd.exists():
        return initrd
    archive = _Cpio()
    for directory in ("bin", "dev", "proc", "sys", "modules", "host", "layer", "upper", "new"):
        archive.add(directory, 0o40755)
    archive.add("dev/console", 0o20600, device=(5, 1))
    archive.add("init", 0o100755, init)
    archive.add("bin/busybox", 0o100755, busybox.read_bytes())
    archive.add("early", 0o100644, "\n".join(names).encode())
    for name, path in zip(names, early, strict=True):
        archive.add(f"modules/{name}", 0o100644, _decompressed(path))
    temporary = initrd.with_name(f"{initrd.name}.{os.getpid()}")
    temporary.write_bytes(archive.finished())
    temporary.rename(initrd)
    return initrd


def _decompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(
            [program("zstd"), "-dcq", str(path)], check=True, stdout=subprocess.PIPE, timeout=60
        ).stdout
    return path.read_bytes()


class _Cpio:
    """An archive in the "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._count = 0

    def add(self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        """One file, directory or device node."""
        self._count += 1
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        self._bytes += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        self._pad()
        self._bytes += data
        self._pad()

    def finished(self) -> bytes:
        """The whole of it, with its trailer."""
        self.add("TRAILER!!!", 0)
        return bytes(self._bytes)

    def _pad(self) -> None:
        self._bytes += bytes(-len(self._bytes) % 4)
