"""Debian packages of any suite, resolved and fetched by apt with a state of its own.

Nothing of the host's dpkg is looked at: the status is empty, so that what is asked for
comes with everything it needs. The mirrors are those of the host's own apt sources.
"""
import pathlib
import re

from . import host

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _mirrors():
    """Mirror of the host's release, and of its security suite if there is one."""
    release = pathlib.Path("/etc/os-release").read_text(encoding="utf-8")
    codename = re.search(r"^VERSION_CODENAME=(\w+)", release, re.M)[1]
    found = {}
    lines = host.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI) $(COMPONENT)",
         "Identifier: Packages"], within=60)
    for line in lines.splitlines():
        release, uri, component = line.split()
        if component == "main":
            found.setdefault(release, uri.rstrip("/"))
    if codename not in found:
        raise host.Trouble(f"apt knows no mirror of {codename}", "apt-get update")
    return found[codename], found.get(f"{codename}-security")


class Apt:
    """An apt that knows one suite, its updates and its security fixes."""

    def __init__(self, suite, place):
        self.place = place
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (place / name).mkdir(parents=True, exist_ok=True)
        (place / "status").touch()
        main, security = _mirrors()
        sources = [(main, suite), (main, f"{suite}-updates"), (security, f"{suite}-security")]
        (place / "etc/sources.list").write_text("".join(
            f"deb [signed-by={KEYRING}] {uri} {name} main\n" for uri, name in sources if uri),
            encoding="ascii")
        self.options = [
            f"--option={name}={value}" for name, value in {
                "Dir::State": place / "state",
                "Dir::State::status": place / "status",
                "Dir::Cache": place / "cache",
                "Dir::Etc::sourcelist": place / "etc/sources.list",
                "Dir::Etc::sourceparts": "/dev/null",
                "Dir::Etc::preferences": "/dev/null",
                "Dir::Etc::preferencesparts": "/dev/null",
                "APT::Install-Recommends": "false",
                "APT::Sandbox::User": "root",
                "APT::Get::AllowUnauthenticated": "false",
                "Acquire::Languages": "none",
                "Acquire::Retries": "2",
            }.items()]
        self._run("apt-get", "--quiet", "update", within=300)

    def _run(self, program, *arguments, within=120, **options):
        return host.run([program, *self.options, *arguments], within=within, **options)

    def closure(self, names):
        """`names` with all they need, fetched: a stanza of the archive's index for each,
        and the directory of their files."""
        self._run("apt-get", "--quiet", "--yes", "--download-only", "install", *names, within=900)
        plan = self._run("apt-get", "--simulate", "install", *names)
        chosen = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.M)
        text = self._run("apt-cache", "show", *(f"{name}={version}" for name, version in chosen))
        stanzas = {}
        for stanza in text.strip().split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.M))
            stanzas.setdefault(fields["Package"], (fields, stanza.strip() + "\n"))
        return [stanzas[name.split(":")[0]] for name, _ in chosen], self.place / "cache/archives"

    def fetch(self, name, directory):
        """Fetches one package without what it needs, and answers its file."""
        directory.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "--quiet", "download", name, cwd=directory, within=600)
        return next(directory.glob(f"{name}_*.deb"))

    def dependency(self, name, pattern):
        """The package that `name` depends on and whose name matches."""
        text = self._run("apt-cache", "depends", "--important", name)
        found = re.search(rf"Depends: ({pattern})$", text, re.M)
        if found is None:
            raise host.Trouble(f"{name} depends on nothing like {pattern}")
        return found[1]
