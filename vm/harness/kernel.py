"""The kernels guests run on: User-mode Linux, and Debian's cloud kernel for QEMU.

Both come out of Debian's packages without being installed anywhere, so that a kernel and
the modules in the guest's image are always of one version.
"""
import lzma
import pathlib
import shutil
import tempfile

from . import cache, host
from .apt import Apt

SUITE = "bookworm"
"""Guests of every suite run on these: trixie's User-mode Linux is not to be had on a host
with bookworm, whose C library is too old for it."""
XSTATE = host.ROOT / "vm/harness/uml-xstate.c"
INITRD = host.ROOT / "vm/guest/initrd"
# What it takes to mount the root: Debian's cloud kernel has all of it as modules.
ROOT_MODULES = ["virtio_pci", "virtio_blk", "ext4"]


def kernels():
    """The directory of the kernels: `linux.uml` and `uml-xstate.so` to preload with
    it, `vmlinuz` and `initrd`, and `modules` with a directory for each of the two."""
    key = cache.digest(pathlib.Path(__file__), INITRD, XSTATE)
    return cache.entry("kernels", key, "the kernels", _make)


def _make(to):
    host.install_packages("dpkg-dev", "kmod", "cpio", "busybox-static", "gcc", "libc6-dev")
    with tempfile.TemporaryDirectory(prefix="farmctl-kernels.") as scratch:
        scratch = pathlib.Path(scratch)
        apt = Apt(SUITE, scratch / "apt")
        uml, cloud = scratch / "uml", scratch / "cloud"
        _unpack(apt.fetch("user-mode-linux", scratch), uml)
        shutil.copy(uml / "usr/bin/linux.uml", to / "linux.uml")
        host.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                  "-o", to / "uml-xstate.so", XSTATE], within=60)
        image = apt.dependency("linux-image-cloud-amd64", r"linux-image-\S+-cloud-amd64")
        _unpack(apt.fetch(image, scratch), cloud)
        version = image.removeprefix("linux-image-")
        shutil.copy(cloud / f"boot/vmlinuz-{version}", to / "vmlinuz")
        modules = to / "modules"
        uml_modules, = (uml / "usr/lib/uml/modules").iterdir()
        for source in (uml_modules, cloud / "lib/modules" / version):
            shutil.copytree(source, modules / source.name, symlinks=True)
            # depmod(8) wants them beneath lib/modules.
            (scratch / "lib").mkdir(exist_ok=True)
            (scratch / "lib/modules").unlink(missing_ok=True)
            (scratch / "lib/modules").symlink_to(modules)
            host.run(["depmod", "--basedir", scratch, source.name], within=120)
        _make_initrd(scratch, version, to / "initrd")


def _unpack(deb, tree):
    host.run(["dpkg-deb", "--extract", deb, tree], within=120)


def _make_initrd(base, version, to):
    """A busybox, the modules in the order they are wanted, and vm/guest/initrd as /init."""
    tree = base / "initrd"
    for name in ("bin", "modules", "dev", "proc", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    shutil.copy(INITRD, tree / "init")
    (tree / "init").chmod(0o755)
    wanted = host.run(
        ["modprobe", "--dirname", base, "--set-version", version, "--show-depends", "--all",
         *ROOT_MODULES], within=60)
    order = []
    for line in wanted.splitlines():
        word, *path = line.split()
        if word != "insmod" or path[0] in order:
            continue
        order.append(path[0])
        data = pathlib.Path(path[0]).read_bytes()
        if path[0].endswith(".xz"):
            data = lzma.decompress(data)
        (tree / f"modules/{len(order):02}.ko").write_bytes(data)
    host.run(["sh", "-c", 'cd "$1" && find . | cpio --quiet --create --format=newc >"$2"',
              "sh", tree, to], within=60)
