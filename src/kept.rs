//! Trees a bake keeps for the next one: after which step, and what they were made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::manifest::Package;

/// Seconds after which what is not locked is installed anew: mirror and index have moved on.
const UNLOCKED: i64 = 7 * 24 * 3600;

/// A step of a bake after which its tree may be kept, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The build packages are installed.
    Packages,
    /// So are the requirements, in their virtualenv.
    Requirements,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Packages, Self::Requirements];

    /// What is installed then, within a sentence.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Packages => "build packages",
            Self::Requirements => "requirements",
        }
    }

    /// Within the name of a volume.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Packages => "packages",
            Self::Requirements => "requirements",
        }
    }
}

/// A tree that is kept, sealed, beside the environment it was made from and on the same storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Kept {
    /// After which step.
    pub step: Step,
    /// Name of the volume.
    pub volume: String,
    /// What it was made of, besides the environment.
    pub inputs: Inputs,
    /// The packages of the environment: all others are a build's.
    pub before: Vec<Package>,
    /// When it was made, seconds since 1970.
    pub made: i64,
}

/// What the steps so far take, besides the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inputs {
    /// Version of the farmctl.
    pub farmctl: String,
    /// Names of the build packages.
    pub packages: Vec<String>,
    /// SHA-256 of the `[debian]` of the lock they are of, hex; empty if they are the mirror's.
    pub lock: String,
    /// What the requirements take.
    pub virtualenv: Option<Virtualenv>,
}

/// What a virtualenv with the requirements takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Virtualenv {
    /// Where it is.
    pub path: PathBuf,
    /// The interpreter's command.
    pub interpreter: String,
    /// The installer's name.
    pub installer: String,
    /// SHA-256 of the requirements with their hashes, hex.
    pub requirements: String,
    /// SHA-256 of the locked distributions that builds take, hex; empty if there is no lock,
    /// and they take what the index has.
    pub builds: String,
}

/// Why a tree is not what a bake that takes `wanted` would make; none if it is.
#[must_use]
pub fn difference(kept: &Kept, wanted: &Inputs, now: i64) -> Option<&'static str> {
    let has = &kept.inputs;
    let is_old = !(0..UNLOCKED).contains(&(now - kept.made));
    if has.farmctl != wanted.farmctl {
        return Some("another farmctl installed them");
    }
    if has.packages != wanted.packages {
        return Some("the list of build packages has changed");
    }
    if !has.packages.is_empty() && has.lock != wanted.lock {
        return Some("the lock of the build packages has changed");
    }
    if !has.packages.is_empty() && has.lock.is_empty() && is_old {
        return Some("the build packages are a week old and not locked");
    }
    if kept.step == Step::Packages {
        return None;
    }
    let (Some(has), Some(wanted)) = (&has.virtualenv, &wanted.virtualenv) else {
        return Some("it is not known what they are");
    };
    let changes = [
        (has.requirements != wanted.requirements, "they have changed"),
        (has.path != wanted.path, "the virtualenv is elsewhere"),
        (has.interpreter != wanted.interpreter, "the interpreter is another"),
        (has.installer != wanted.installer, "the installer is another"),
        (has.builds != wanted.builds, "what their builds take has changed"),
        (
            has.builds.is_empty() && is_old,
            "they are a week old, and what builds take is not locked",
        ),
    ];
    changes.into_iter().find_map(|(is_so, why)| is_so.then_some(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    fn kept(step: Step) -> Kept {
        Kept {
            step,
            volume: "fv-stage-shop-requirements-00".to_owned(),
            inputs: Inputs {
                farmctl: "1".to_owned(),
                packages: vec!["gcc".to_owned()],
                lock: String::new(),
                virtualenv: Some(Virtualenv {
                    path: "/srv/shop/venv".into(),
                    interpreter: "python3".to_owned(),
                    installer: "uv".to_owned(),
                    requirements: "aa".to_owned(),
                    builds: String::new(),
                }),
            },
            before: Vec::new(),
            made: 100 * DAY,
        }
    }

    #[test]
    fn the_first_thing_that_changed_is_said() {
        let kept = kept(Step::Requirements);
        let now = 101 * DAY;
        let after = |change: &dyn Fn(&mut Inputs)| {
            let mut wanted = kept.inputs.clone();
            change(&mut wanted);
            difference(&kept, &wanted, now)
        };
        assert_eq!(after(&|_| ()), None);
        assert_eq!(after(&|it| it.farmctl.push('1')), Some("another farmctl installed them"));
        assert_eq!(
            after(&|it| it.packages.clear()),
            Some("the list of build packages has changed")
        );
        let relocked = after(&|it| it.lock.push('b'));
        assert_eq!(relocked, Some("the lock of the build packages has changed"));
        let virtualenv = |change: fn(&mut Virtualenv)| {
            after(&|it| change(it.virtualenv.as_mut().expect("it has one")))
        };
        assert_eq!(virtualenv(|it| it.requirements.push('b')), Some("they have changed"));
        assert_eq!(virtualenv(|it| it.path.push("b")), Some("the virtualenv is elsewhere"));
        assert_eq!(virtualenv(|it| it.interpreter.push('3')), Some("the interpreter is another"));
        assert_eq!(virtualenv(|it| it.installer.push('3')), Some("the installer is another"));
        assert_eq!(
            virtualenv(|it| it.builds.push('3')),
            Some("what their builds take has changed")
        );
        assert_eq!(after(&|it| it.virtualenv = None), Some("it is not known what they are"));
    }

    #[test]
    fn build_packages_alone_do_not_ask_for_the_requirements() {
        let kept = kept(Step::Packages);
        let wanted = Inputs { virtualenv: None, ..kept.inputs.clone() };
        assert_eq!(difference(&kept, &wanted, 101 * DAY), None);
    }

    #[test]
    fn what_is_not_locked_is_kept_for_a_week() {
        let mut kept = kept(Step::Packages);
        let week_old = Some("the build packages are a week old and not locked");
        let at = |kept: &Kept, day| difference(kept, &kept.inputs, day * DAY);
        assert_eq!(at(&kept, 106), None);
        assert_eq!(at(&kept, 107), week_old);
        // The clock was set back.
        assert_eq!(at(&kept, 99), week_old);
        kept.inputs.lock = "aa".to_owned();
        assert_eq!(at(&kept, 1000), None);
        kept.step = Step::Requirements;
        let unlocked = Some("they are a week old, and what builds take is not locked");
        assert_eq!((at(&kept, 106), at(&kept, 107)), (None, unlocked));
        kept.step = Step::Packages;
        kept.inputs.lock.clear();
        kept.inputs.packages.clear();
        assert_eq!(at(&kept, 1000), None);
    }
}
