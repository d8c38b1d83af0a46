"""The package pool: a signed Debian archive with just what guests and their chroots need.

The stanzas are the archive's own, so that debootstrap sees the priorities it goes by.
One package is changed: debian-archive-keyring also has the pool's key, which is how
guests, and environments bootstrapped in them, trust the pool as they trust Debian.
"""
import contextlib
import email.utils
import gzip
import hashlib
import pathlib
import re
import shutil
import tempfile
import tomllib

from . import cache, host
from .apt import Apt

LABEL = "vm-pool"
PACKAGES = host.ROOT / "vm/guest/packages.toml"
KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"


def packages():
    """The lists of packages.toml."""
    return tomllib.loads(PACKAGES.read_text(encoding="utf-8"))


def pool(suite):
    """The directory of the suite's pool: `archive` with `debian` and `debian-security`,
    `pool.img` (a file system with these), and `pool.gpg` (the key)."""
    key = cache.digest(suite, packages(), pathlib.Path(__file__))
    return cache.entry("pool", key, f"the package pool of {suite}", lambda to: _make(suite, to))


def _make(suite, to):
    host.install_packages("dpkg-dev", "gnupg", "e2fsprogs", "debian-archive-keyring")
    names = sorted({name for names in packages().values() for name in names})
    with tempfile.TemporaryDirectory(prefix="farmctl-pool.") as scratch:
        scratch = pathlib.Path(scratch)
        required = ["?essential", "?priority(required)"]
        # Else init-system-helpers brings usrmerge, which bootstrapping tools leave out.
        wanted = [*required, "usr-is-merged", *names]
        stanzas, files = Apt(suite, scratch / "apt").closure(wanted)
        with contextlib.closing(_Key(scratch / "gpg")) as key:
            key.export(to / "pool.gpg")
            debian, security = to / "archive/debian", to / "archive/debian-security"
            index = [_add(debian, files, key, scratch, *stanza) for stanza in stanzas]
            _publish(debian, suite, index, key)
            # apt does not tell of a suite without packages: these have one that is there anyway.
            _publish(debian, f"{suite}-updates", index[:1], key)
            _publish(security, f"{suite}-security",
                     [_add(security, files, key, scratch, *stanzas[0])], key)
    host.run(["mkfs.ext4", "-q", "-L", LABEL, "-m", "0", "-d", to / "archive",
              to / "pool.img", "1G"], within=300)


class _Key:
    """A signing key that lives as long as the pool is being made."""

    def __init__(self, home):
        home.mkdir(mode=0o700)
        self.gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--no-tty"]
        self.home = home
        host.run([*self.gpg, "--passphrase", "", "--quick-generate-key",
                  "farmctl vm pool", "rsa3072", "sign", "never"], within=120)

    def export(self, path):
        host.run([*self.gpg, "--output", path, "--export"], within=60)

    def sign(self, path, to):
        host.run([*self.gpg, "--output", to, "--clearsign", path], within=60)

    def close(self):
        host.run(["gpgconf", "--homedir", self.home, "--kill", "all"], within=60)


def _add(archive, files, key, scratch, fields, stanza):
    """Puts a package into the archive and answers its stanza."""
    version = fields["Version"].replace(":", "%3a")
    name = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
    target = archive / fields["Filename"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if fields["Package"] != "debian-archive-keyring":
        shutil.copyfile(files / name, target)
        return stanza
    tree = scratch / "keyring"
    host.run(["dpkg-deb", "--raw-extract", files / name, tree], within=60)
    key.export(scratch / "pool.gpg")
    with open((tree / KEYRING).resolve(), "ab") as keyring:
        keyring.write((scratch / "pool.gpg").read_bytes())
    (tree / "DEBIAN/md5sums").unlink()
    host.run(["dpkg-deb", "--root-owner-group", "--build", tree, target], within=60)
    data = target.read_bytes()
    stanza = re.sub(r"^(MD5sum|SHA1|SHA512): .*\n", "", stanza, flags=re.M)
    stanza = re.sub(r"^Size: .*$", f"Size: {len(data)}", stanza, flags=re.M)
    hashed = f"SHA256: {hashlib.sha256(data).hexdigest()}"
    return re.sub(r"^SHA256: .*$", hashed, stanza, flags=re.M)


def _publish(archive, suite, stanzas, key):
    """Writes the signed index of a suite (https://wiki.debian.org/DebianRepository/Format)."""
    dists = archive / "dists" / suite
    binary = dists / "main/binary-amd64"
    binary.mkdir(parents=True)
    text = "\n".join(stanzas).encode()
    (binary / "Packages").write_bytes(text)
    (binary / "Packages.gz").write_bytes(gzip.compress(text, mtime=0))
    release = (
        f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\n"
        f"Date: {email.utils.formatdate(usegmt=True).replace('GMT', '+0000')}\n"
        "Architectures: amd64\nComponents: main\nDescription: farmctl's tests\nSHA256:\n")
    for path in (binary / "Packages", binary / "Packages.gz"):
        data = path.read_bytes()
        release += f" {hashlib.sha256(data).hexdigest()} {len(data)} {path.relative_to(dists)}\n"
    (dists / "Release").write_text(release, encoding="ascii")
    key.sign(dists / "Release", dists / "InRelease")
