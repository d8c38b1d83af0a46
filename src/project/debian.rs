//! What a project needs of Debian: the suite whose Python it runs on, and the packages
//! well-known distributions are built with and load when they run.

use super::requirement::Requirement;

/// Suites with their Pythons, the one that is taken first, first
/// (<https://packages.debian.org/python3>).
pub const SUITES: [(&str, (u32, u32)); 2] = [("bookworm", (3, 11)), ("trixie", (3, 13))];

/// The Python of a suite that is known.
#[must_use]
pub fn python_of(suite: &str) -> Option<(u32, u32)> {
    SUITES.iter().find(|(name, _)| *name == suite).map(|(_, python)| *python)
}

/// The first suite whose Python a specifier (PEP 440) takes.
#[must_use]
pub fn suite_for(specifier: &str) -> Option<&'static str> {
    SUITES.iter().find(|(_, python)| takes(specifier, *python)).map(|(name, _)| *name)
}

/// Whether a specifier takes some release of this Python.
#[must_use]
pub fn takes(specifier: &str, python: (u32, u32)) -> bool {
    // Of poetry's alternatives one is enough.
    specifier.split("||").any(|all| all.split(',').all(|one| takes_one(one.trim(), python)))
}

fn takes_one(one: &str, python: (u32, u32)) -> bool {
    let end = one.find(|letter: char| letter.is_ascii_digit()).unwrap_or(one.len());
    let (sign, version) = one.split_at(end);
    let version = version.trim_end_matches(".*");
    let numbers: Vec<u32> = version.split('.').map_while(|word| word.trim().parse().ok()).collect();
    let Some(&major) = numbers.first() else { return true };
    let minor = numbers.get(1).copied();
    let asked = (major, minor.unwrap_or(0));
    match sign.trim() {
        ">=" => python >= asked,
        // Whatever its third number, some release is newer.
        ">" => python > asked || (python == asked && numbers.len() > 2),
        "<=" => python <= asked,
        "<" => {
            python < asked || (python == asked && numbers.get(2).is_some_and(|patch| *patch > 0))
        }
        "==" | "===" | "" => major == python.0 && minor.is_none_or(|minor| minor == python.1),
        "~=" if numbers.len() > 2 => python == asked,
        "~=" => major == python.0 && python >= asked,
        "!=" => numbers.len() > 2 || minor.is_none() || python != asked,
        _ => true,
    }
}

/// How a distribution comes to an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// Built from its source at bake.
    Source,
    /// As a wheel for amd64 and arm64, with the libraries in it; elsewhere from source.
    Wheel,
    /// As a wheel that loads the libraries of the environment.
    Loads,
}

/// A well-known distribution, what it is built with, and what it loads in each suite.
struct Known {
    name: &'static str,
    comes: Comes,
    build: &'static [&'static str],
    bookworm: &'static [&'static str],
    trixie: &'static [&'static str],
}

const fn known(
    name: &'static str,
    comes: Comes,
    build: &'static [&'static str],
    bookworm: &'static [&'static str],
    trixie: &'static [&'static str],
) -> Known {
    Known { name, comes, build, bookworm, trixie }
}

const PG: &[&str] = &["libpq5"];
const PANGO: &[&str] = &["libpango-1.0-0", "libpangoft2-1.0-0", "libharfbuzz-subset0"];

/// By their normalised names.
const KNOWN: [Known; 27] = [
    known("cairocffi", Comes::Loads, &[], &["libcairo2"], &["libcairo2"]),
    known("cairosvg", Comes::Loads, &[], &["libcairo2"], &["libcairo2"]),
    known("cffi", Comes::Wheel, &["libffi-dev"], &["libffi8"], &["libffi8"]),
    known(
        "cryptography",
        Comes::Wheel,
        &["libssl-dev", "rustc", "cargo"],
        &["libssl3"],
        &["libssl3t64"],
    ),
    known("django-auth-ldap", Comes::Source, LDAP_DEV, &["libldap-2.5-0"], &["libldap2"]),
    known("lxml", Comes::Wheel, &["libxml2-dev", "libxslt1-dev"], &["libxslt1.1"], &["libxslt1.1"]),
    known(
        "mysqlclient",
        Comes::Source,
        &["default-libmysqlclient-dev", "pkg-config"],
        &["libmariadb3"],
        &["libmariadb3"],
    ),
    known(
        "numpy",
        Comes::Wheel,
        &["libopenblas-dev", "gfortran"],
        &["libopenblas0"],
        &["libopenblas0"],
    ),
    known(
        "pillow",
        Comes::Wheel,
        &["libjpeg-dev", "zlib1g-dev", "libfreetype-dev"],
        &["libjpeg62-turbo", "libfreetype6"],
        &["libjpeg62-turbo", "libfreetype6"],
    ),
    known("psycopg", Comes::Loads, &[], PG, PG),
    known("psycopg-c", Comes::Source, &["libpq-dev"], PG, PG),
    known("psycopg2", Comes::Source, &["libpq-dev"], PG, PG),
    known(
        "pycairo",
        Comes::Source,
        &["libcairo2-dev", "pkg-config"],
        &["libcairo2"],
        &["libcairo2"],
    ),
    known(
        "pycurl",
        Comes::Source,
        &["libcurl4-openssl-dev", "libssl-dev"],
        &["libcurl4"],
        &["libcurl4t64"],
    ),
    known(
        "pygraphviz",
        Comes::Source,
        &["libgraphviz-dev", "pkg-config"],
        &["graphviz"],
        &["graphviz"],
    ),
    known(
        "pylibmc",
        Comes::Source,
        &["libmemcached-dev", "zlib1g-dev"],
        &["libmemcached11"],
        &["libmemcached11t64"],
    ),
    known("pyodbc", Comes::Loads, &[], &["unixodbc"], &["unixodbc"]),
    known("python-ldap", Comes::Source, LDAP_DEV, &["libldap-2.5-0"], &["libldap2"]),
    known("python-magic", Comes::Loads, &[], &["libmagic1"], &["libmagic1t64"]),
    known("pyuwsgi", Comes::Wheel, &[], &[], &[]),
    known("rjsmin", Comes::Wheel, &[], &[], &[]),
    known(
        "scipy",
        Comes::Wheel,
        &["libopenblas-dev", "gfortran", "pkg-config"],
        &["libopenblas0"],
        &["libopenblas0"],
    ),
    // Linked with the shared library, which is a package besides the interpreter's.
    known("uwsgi", Comes::Source, &[], &["libpython3.11"], &["libpython3.13"]),
    known("uwsgitop", Comes::Source, &[], &[], &[]),
    known("weasyprint", Comes::Loads, &[], PANGO, PANGO),
    known(
        "xmlsec",
        Comes::Wheel,
        &["libxmlsec1-dev", "pkg-config"],
        &["libxmlsec1-openssl"],
        &["libxmlsec1t64-openssl"],
    ),
    known("zstandard", Comes::Wheel, &[], &[], &[]),
];

const LDAP_DEV: &[&str] = &["libldap-dev", "libsasl2-dev"];
/// What every extension in C is built with.
const COMPILER: [&str; 2] = ["build-essential", "python3-dev"];

/// Packages a list of requirements asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packages {
    /// For the bake, purged before packing.
    pub build: Vec<&'static str>,
    /// For the environment.
    pub run: Vec<&'static str>,
    /// The distributions that are built, and those that load what is in the environment.
    pub because: Vec<&'static str>,
    /// Distributions that come as wheels, each with what a machine without one needs.
    pub wheels: Vec<(&'static str, Vec<&'static str>)>,
}

/// Packages that requirements ask for, in a suite.
#[must_use]
pub fn packages(wanted: &[Requirement], suite: &str) -> Packages {
    let mut packages = Packages::default();
    let mut names: Vec<&str> = wanted.iter().map(|one| one.name.as_str()).collect();
    // An extra is a distribution by another name.
    let has_extra = |one: &Requirement, extra: &str| {
        let extras = one.text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        extras.is_some_and(|(extras, _)| extras.split(',').any(|it| it.trim() == extra))
    };
    for one in wanted.iter().filter(|one| one.name == "psycopg") {
        if has_extra(one, "binary") {
            names.retain(|name| *name != "psycopg");
        } else if has_extra(one, "c") {
            names.push("psycopg-c");
        }
    }
    for known in KNOWN.iter().filter(|known| names.contains(&known.name)) {
        let run = if suite == "bookworm" { known.bookworm } else { known.trixie };
        if known.comes == Comes::Wheel {
            if !known.build.is_empty() {
                packages.wheels.push((known.name, known.build.to_vec()));
            }
            continue;
        }
        if known.comes == Comes::Source {
            packages.build.extend(COMPILER);
        }
        packages.build.extend(known.build);
        packages.run.extend(run);
        packages.because.push(known.name);
    }
    for list in [&mut packages.build, &mut packages.run] {
        list.sort_unstable();
        list.dedup();
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_suite_whose_python_fits_is_taken() {
        for (specifier, suite) in [
            (">=3.8", Some("bookworm")),
            (">=3.10, <3.15", Some("bookworm")),
            (">=3.12", Some("trixie")),
            (">=3.12,<3.13", None),
            ("~=3.11", Some("bookworm")),
            ("~=3.12.1", None),
            ("==3.13.*", Some("trixie")),
            ("==3.11.7", Some("bookworm")),
            (">3.11", Some("trixie")),
            (">3.11.2", Some("bookworm")),
            ("!=3.11.*", Some("trixie")),
            ("<3.11", None),
            (">=3.14", None),
            ("<3,>=2.7||>=3.12", Some("trixie")),
            ("", Some("bookworm")),
        ] {
            assert_eq!(suite_for(specifier), suite, "{specifier}");
        }
    }

    fn wanted(lines: &[&str]) -> Vec<Requirement> {
        lines.iter().filter_map(|line| Requirement::parse(line)).collect()
    }

    #[test]
    fn drivers_and_libraries_bring_their_debian_packages() {
        let found = packages(&wanted(&["psycopg2>=2.9", "Pillow", "python-ldap"]), "trixie");
        assert_eq!(
            found.build,
            ["build-essential", "libldap-dev", "libpq-dev", "libsasl2-dev", "python3-dev"]
        );
        assert_eq!(found.run, ["libldap2", "libpq5"]);
        assert_eq!(found.because, ["psycopg2", "python-ldap"]);
        assert_eq!(found.wheels[0].0, "pillow");
    }

    #[test]
    fn a_binary_driver_needs_nothing() {
        for line in ["psycopg2-binary", "psycopg[binary]", "flask"] {
            assert_eq!(packages(&wanted(&[line]), "bookworm"), Packages::default(), "{line}");
        }
        assert_eq!(packages(&wanted(&["psycopg[c]"]), "bookworm").build.len(), 3);
        assert_eq!(packages(&wanted(&["psycopg"]), "bookworm").run, ["libpq5"]);
    }
}
