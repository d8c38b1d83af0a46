"""Says what a build asks for (PEP 517, PEP 518), as JSON.

argv: "static", a source, an empty directory: what pyproject.toml names, and the directory
the source lies in, unpacked there if it is an sdist.
argv: "dynamic", that directory: what the backend adds, run where the former is installed.
"""
import importlib
import json
import os
import pathlib
import sys
import tarfile
import tomllib
import zipfile


def build_system(directory):
    file = pathlib.Path(directory) / "pyproject.toml"
    table = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    return table.get("build-system", {})


def static(source, target):
    if not os.path.isdir(source):
        if zipfile.is_zipfile(source):
            zipfile.ZipFile(source).extractall(target)
        else:
            with tarfile.open(source) as archive:
                archive.extractall(target)
        (source,) = pathlib.Path(target).iterdir()
    # PEP 518 has these two where nothing is said; newer frontends leave wheel out.
    asked = build_system(source).get("requires", ["setuptools>=40.8.0", "wheel"])
    return {"directory": str(source), "requires": asked}


def dynamic(directory):
    os.chdir(directory)
    system = build_system(directory)
    backend = system.get("build-backend", "setuptools.build_meta:__legacy__")
    sys.path[:0] = [os.path.join(directory, path) for path in system.get("backend-path", [])]
    name, _, attributes = backend.partition(":")
    found = importlib.import_module(name)
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    ask = getattr(found, "get_requires_for_build_wheel", None)
    return {"directory": directory, "requires": list(ask() if ask else [])}


# A backend may print what it likes; the answer has the real standard output for itself.
answer = os.dup(1)
os.dup2(2, 1)
verb, *words = sys.argv[1:]
os.write(answer, json.dumps({"static": static, "dynamic": dynamic}[verb](*words)).encode())
