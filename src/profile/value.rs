//! Values written as strings: signals, ways to reload, durations.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::{Ready, Reload, Seconds, Sign, Signal, Stop};

impl Signal {
    /// All signals a profile may name.
    pub const ALL: [Self; 7] =
        [Self::Hup, Self::Int, Self::Quit, Self::Term, Self::Usr1, Self::Usr2, Self::Winch];

    /// The name without `SIG`, as kill(1) takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Term => "TERM",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
            Self::Winch => "WINCH",
        }
    }

    /// The number on Linux (signal(7), the column of x86 and ARM).
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Hup => 1,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Term => 15,
            Self::Usr1 => 10,
            Self::Usr2 => 12,
            Self::Winch => 28,
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|signal| signal.name() == text).ok_or_else(|| {
            format!("{text:?} is not a signal; signals are written {}", Self::names())
        })
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl JsonSchema for Signal {
    fn schema_name() -> Cow<'static, str> {
        "Signal".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "A signal, without SIG.", "enum": Self::ALL.map(Self::name) })
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl TryFrom<String> for Reload {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "restart" => return Ok(Self::Restart),
            "command" => return Ok(Self::Command),
            "rolling" => return Ok(Self::Rolling),
            "replace" => return Ok(Self::Replace),
            _ => {}
        }
        text.parse().map(Self::Signal).map_err(|_| {
            format!(
                "{text:?} is not a way to reload; it is \"restart\", \"command\", \"rolling\", \"replace\" or \
                 one of the signals {}",
                Signal::names()
            )
        })
    }
}

impl From<Reload> for String {
    fn from(reload: Reload) -> Self {
        reload.to_string()
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart => f.write_str("restart"),
            Self::Command => f.write_str("command"),
            Self::Rolling => f.write_str("rolling"),
            Self::Replace => f.write_str("replace"),
            Self::Signal(signal) => f.write_str(signal.name()),
        }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: super::term(), within: super::half_a_minute() }
    }
}

impl Ready {
    /// Ready once `http` answers, within the default time.
    #[must_use]
    pub fn at(http: impl Into<String>) -> Self {
        Self {
            http: Some(http.into()),
            body: None,
            command: None,
            socket: false,
            within: super::half_a_minute(),
        }
    }

    /// What shows it; a profile that is right has one.
    #[must_use]
    pub fn sign(&self) -> Sign<'_> {
        match (&self.http, &self.command) {
            (Some(path), _) => Sign::Http { path, body: self.body.as_deref() },
            (None, Some(command)) => Sign::Command(command),
            (None, None) => Sign::Socket,
        }
    }
}

/// Nothing farmctl waits for takes longer than a day.
const LONGEST: u64 = 24 * 60 * 60;

impl Seconds {
    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }
}

impl TryFrom<u64> for Seconds {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        if (1..=LONGEST).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err("a duration is at least a second and at most a day".to_owned())
        }
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.char_indices().last() {
            Some((at, 's')) => (&text[..at], 1),
            Some((at, 'm')) => (&text[..at], 60),
            Some((at, 'h')) => (&text[..at], 60 * 60),
            _ => (text, 1),
        };
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        match seconds {
            Some(seconds) if plain => Self::try_from(seconds),
            _ => Err(format!(
                "{text:?} is not a duration; durations are written \"30s\", \"5m\", \"1h\" or 30"
            )),
        }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds > 0 && seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            seconds if seconds > 0 && seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration: seconds, minutes or hours.",
            "type": "string",
            "pattern": "^[0-9]+[smh]$",
        })
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                Seconds::try_from(seconds).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                self.visit_u64(u64::try_from(seconds).unwrap_or(0))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_unit_and_written_in_the_largest() {
        let read =
            |text: &str| text.parse::<Seconds>().map(|seconds| (seconds.0, seconds.to_string()));
        assert_eq!(read("30s"), Ok((30, "30s".to_owned())));
        assert_eq!(read("90"), Ok((90, "90s".to_owned())));
        assert_eq!(read("120s"), Ok((120, "2m".to_owned())));
        assert_eq!(read("24h"), Ok((86_400, "24h".to_owned())));
        for bad in ["", "s", "+3s", "-1", "1.5s", "3d", "0s", "25h", "99999999999999999999h", "1é"]
        {
            assert!(read(bad).is_err(), "{bad:?} was taken for a duration");
        }
    }

    #[test]
    fn durations_may_be_numbers() {
        assert_eq!(serde_json::from_str::<Seconds>("45").ok(), Some(Seconds(45)));
        assert!(serde_json::from_str::<Seconds>("-45").is_err());
        assert_eq!(serde_json::to_string(&Seconds(45)).ok().as_deref(), Some("\"45s\""));
    }

    #[test]
    fn ways_to_reload_are_signals_or_restart() {
        assert_eq!(Reload::try_from("HUP".to_owned()), Ok(Reload::Signal(Signal::Hup)));
        assert_eq!(Reload::try_from("restart".to_owned()), Ok(Reload::Restart));
        assert_eq!(
            Reload::try_from("SIGHUP".to_owned()),
            Err("\"SIGHUP\" is not a way to reload; it is \"restart\", \"command\", \"rolling\", \
                 \"replace\" or one of the signals HUP, INT, QUIT, TERM, USR1, USR2, WINCH"
                .to_owned())
        );
    }

    #[test]
    fn numbers_of_signals_are_those_of_linux() {
        for signal in Signal::ALL {
            let number = match signal {
                Signal::Hup => libc::SIGHUP,
                Signal::Int => libc::SIGINT,
                Signal::Quit => libc::SIGQUIT,
                Signal::Term => libc::SIGTERM,
                Signal::Usr1 => libc::SIGUSR1,
                Signal::Usr2 => libc::SIGUSR2,
                Signal::Winch => libc::SIGWINCH,
            };
            assert_eq!(signal.number(), number);
        }
    }
}
