"""Makes a virtualenv independent of who filled it, when and from where.

argv: the virtualenv. uv and pip differ in the metadata they leave (INSTALLER,
REQUESTED, direct_url.json, uv_cache.json), in the text of console scripts and in the
order of RECORD; uv also leaves a lock file, CACHEDIR.TAG and .gitignore.
"""
import base64
import configparser
import csv
import hashlib
import os
import pathlib
import sys

venv = pathlib.Path(sys.argv[1])
SCRIPT = """#!{python}
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({call}())
"""


def entry_points(info):
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str
    if (info / "entry_points.txt").exists():
        parser.read_string((info / "entry_points.txt").read_text("utf-8"))
    for section in ("console_scripts", "gui_scripts"):
        if parser.has_section(section):
            yield from parser.items(section)


def digest(path):
    value = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(value).rstrip(b"=").decode()


for name in (".lock", "CACHEDIR.TAG", ".gitignore"):
    (venv / name).unlink(missing_ok=True)

for packages in sorted(venv.glob("lib/python3*/site-packages")):
    for info in sorted(packages.glob("*.dist-info")):
        for name in ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"):
            (info / name).unlink(missing_ok=True)
        scripts = set()
        for name, target in entry_points(info):
            module, _, call = target.split("[")[0].strip().partition(":")
            script = venv / "bin" / name
            text = SCRIPT.format(
                python=venv / "bin" / "python", module=module, first=call.split(".")[0], call=call
            )
            script.write_text(text, "utf-8")
            script.chmod(0o755)
            scripts.add(os.path.relpath(script, packages))
        record = info / "RECORD"
        if not record.exists():
            continue
        with record.open(newline="", encoding="utf-8") as lines:
            paths = {row[0] for row in csv.reader(lines) if row}
        own = os.path.relpath(record, packages)
        rows = []
        for path in sorted(paths | scripts):
            file = packages / path
            if path == own:
                rows.append((path, "", ""))
            elif file.is_file() and "__pycache__" not in path:
                rows.append((path, digest(file), str(file.stat().st_size)))
        with record.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines, lineterminator="\n").writerows(rows)

# Installers take file modes from the archive or the umask; only the x bit means something.
for directory, _, names in os.walk(venv):
    os.chmod(directory, 0o755)
    for name in names:
        path = os.path.join(directory, name)
        if not os.path.islink(path):
            os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)
