"""Root file systems of guests: stock Debian with systemd, made from the pool.

One image serves both engines. What farmctl's tests add to stock Debian is vm/guest/root:
where packages come from, the unit that runs the test, and nothing that takes time at boot.
"""
import pathlib
import shutil

from . import cache, host, kernel, pool

OVERLAY = host.ROOT / "vm/guest/root"
SIZE = "8G"
# Nobody logs in, nothing is due while a test runs, and fork(2) is dear in User-mode Linux.
MASKED = [
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
    "systemd-random-seed.service", "systemd-binfmt.service", "systemd-update-utmp.service",
    "systemd-timesyncd.service", "supervisor.service", "modprobe@drm.service",
    "modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@configfs.service",
    "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount", "dev-mqueue.mount", "dev-hugepages.mount",
]
ENABLED = ["pool.service"]


def image(suite, node):
    """The root file system of a `fresh` or `ready` node, a file."""
    packages = pool.packages()
    include = packages["fresh"] + (packages["ready"] if node == "ready" else [])
    archive, kernels = pool.pool(suite), kernel.kernels()
    key = cache.digest(suite, node, include, archive.name, kernels.name, pathlib.Path(__file__),
                       OVERLAY)
    made = cache.entry(f"image-{node}", key, f"the image of a {node} node with {suite}",
                       lambda to: _make(suite, include, archive, kernels, to))
    return made / "root.img"


def _make(suite, include, archive, kernels, to):
    host.install_packages("mmdebstrap", "e2fsprogs")
    tree = to / "tree"
    # dpkg stays unsafe in the guest: it syncs each file otherwise. apt's option does not.
    host.run(host.contained(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet",
         f"--include={','.join(include)}", f"--keyring={archive / 'pool.gpg'}",
         "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--dpkgopt=force-unsafe-io",
         "--aptopt=APT::Sandbox::User \"root\"",
         suite, tree, f"copy://{archive / 'archive/debian'}"]),
        within=900)
    (tree / "etc/apt/apt.conf.d/99mmdebstrap").unlink()
    (tree / "etc/apt/sources.list").unlink()
    shutil.copytree(OVERLAY, tree, dirs_exist_ok=True)
    sources = tree / "etc/apt/sources.list.d/debian.sources"
    sources.write_text(sources.read_text(encoding="ascii").replace("SUITE", suite), "ascii")
    for modules in (kernels / "modules").iterdir():
        shutil.copytree(modules, tree / "lib/modules" / modules.name, symlinks=True)
    host.run(["chroot", tree, "systemctl", "--quiet", "mask", *MASKED], within=60)
    host.run(["chroot", tree, "systemctl", "--quiet", "enable", *ENABLED], within=60)
    # An empty one would make every boot a first boot, with presets and questions.
    (tree / "etc/machine-id").unlink(missing_ok=True)
    host.run(["chroot", tree, "systemd-machine-id-setup"], within=60)
    host.run(["mkfs.ext4", "-q", "-L", "root", "-m", "0", "-d", tree, to / "root.img", SIZE],
             within=300)
    shutil.rmtree(tree)
