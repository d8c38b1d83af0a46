"""What a guest is given besides its root: the program, tarballs, profiles, wheels, tests."""
import os
import pathlib
import re
import shutil
import tempfile
import tomllib

from . import cache, host

LABEL = "vm-share"
PROFILE = host.ROOT / "profiles/hello"
PROJECTS = {
    "hello": (PROFILE, "app/hello.py"),
    "long": (host.ROOT / "vm/guest/long", "long_server.py"),
    "mezzanine": (host.ROOT / "profiles/mezzanine", "site/website/urls.py"),
}
"""What guests are given tarballs of: the profile, and the file that has a line more in the
release after it."""
REQUIREMENTS = host.ROOT / "vm/guest/requirements.txt"
PIP = pathlib.Path("/usr/share/python-wheels")
"""Where Debian's python3-pip-whl keeps pip as a wheel, which runs as it is."""


def share(farmctl, projects, to):
    """Writes the share to the file `to`, a read-only file system for the guests of a run, with
    the tarballs of these projects."""
    host.install_packages("e2fsprogs", "busybox-static")
    with tempfile.TemporaryDirectory(prefix=".share.", dir=to.parent) as tree:
        tree = pathlib.Path(tree)
        tree.chmod(0o755)
        for name in ("bin", "pool"):
            (tree / name).mkdir()
        shutil.copy(farmctl, tree / "bin/farmctl")
        shutil.copy(package(), tree / "farmctl.deb")
        shutil.copy("/bin/busybox", tree / "bin/busybox")
        for name in ("profiles", "vm/guest", "vm/tests"):
            shutil.copytree(host.ROOT / name, tree / pathlib.Path(name).name)
        for project in projects:
            shutil.copytree(tarballs(farmctl, project), tree / "tarballs", dirs_exist_ok=True)
        shutil.copytree(wheels(), tree, dirs_exist_ok=True)
        host.run(["mkfs.ext4", "-q", "-L", LABEL, "-m", "0", "-d", tree, to, "512M"], within=120)


def package():
    """The Debian package of this tree."""
    said = host.run([host.ROOT / "scripts/package"], within=900)
    return host.ROOT / said.splitlines()[-1]


def tarballs(farmctl, project):
    """The directory of the node tarball of a profile, baked by this farmctl; in `next` that of
    the release after it, a line of code further."""
    profile, changed = PROJECTS[project]
    key = cache.digest(farmctl, profile, pathlib.Path(__file__))
    made = cache.entry("tarballs", key, f"{project}'s tarballs, with farmctl on this host",
                       lambda to: _bake(farmctl, profile, changed, to))
    return made / "tarballs"


# farmctl's own paths go beneath --root, but schroot knows only its own: among the mounts
# of host.contained() that is a copy, so that environments of this host are neither seen nor
# touched.
BAKE = """
farmctl=$1 root=$2 profile=$3 changed=$4 out=$5
cp -a /etc/schroot "$root/schroot"
rm -f "$root"/schroot/chroot.d/farmctl-*
mount --bind "$root/schroot" /etc/schroot
mount -t tmpfs tmpfs /var/lib/schroot
mkdir /var/lib/schroot/session
"$farmctl" --root "$root" bootstrap "$profile"
"$farmctl" --root "$root" bake "$profile" --output "$out"
cp -r "$profile" "$root/next"
echo "# One line more." >>"$root/next/$changed"
"$farmctl" --root "$root" bake "$root/next" --set-version 1.0.1 --output "$out/next"
"""


def _bake(farmctl, profile, changed, to):
    host.install_packages("debootstrap", "schroot", "python3", "gpgv", "debian-archive-keyring")
    root, out = to / "root", to / "tarballs"
    root.mkdir()
    (out / "next").mkdir(parents=True)
    environment = {**os.environ, "FARMCTL_CACHE": str(host.CACHE.parent)}
    command = ["sh", "-euc", BAKE, "sh", farmctl, root, profile, changed, out]
    host.run(host.contained(command), within=900, env=environment)
    shutil.rmtree(root)


def wheels():
    """The directory of a Python package index (`simple`, PEP 503) with the wheels hello's
    lock and vm/guest/requirements.txt name, and the uv that farmctl fetches."""
    key = cache.digest(_requirements(), pathlib.Path(__file__))
    return cache.entry("wheels", key, "the index of wheels", _download)


def _requirements():
    """Lines of a requirements file, with hashes."""
    lock = tomllib.loads((PROFILE / "farmctl.lock").read_text(encoding="utf-8"))
    wanted = [(it["name"], it["version"], it["sha256"]) for it in lock["python"]["distribution"]]
    source = (host.ROOT / "src/python/mod.rs").read_text(encoding="utf-8")
    version = re.search(r'const UV_VERSION: &str = "([^"]+)"', source)
    hashes = re.findall(r'\("amd64", "([0-9a-f]{64})"\)', source)
    if not version or not hashes:
        raise host.Trouble("src/python/mod.rs no longer says which uv it fetches, in the old words")
    wanted.append(("uv", version[1], hashes))
    lines = [" ".join([f"{name}=={version}", *(f"--hash=sha256:{it}" for it in hashes)])
             for name, version, hashes in wanted]
    return lines + REQUIREMENTS.read_text(encoding="ascii").splitlines()


def _download(to):
    host.install_packages("python3-pip-whl")
    requirements = to / "requirements.txt"
    requirements.write_text("\n".join(_requirements()) + "\n", encoding="ascii")
    pip = next(PIP.glob("pip-*.whl")) / "pip"
    host.run(["/usr/bin/python3", pip, "download", "--quiet", "--no-deps", "--only-binary=:all:",
              "--require-hashes", "--dest", to / "wheels", "--requirement", requirements],
             within=600)
    for wheel in (to / "wheels").iterdir():
        name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        page = to / "simple" / name / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        with open(page, "a", encoding="ascii") as text:
            text.write(f'<a href="../../wheels/{wheel.name}">{wheel.name}</a>\n')
