//! What people see: steps and progress on standard error, answers on standard output.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only (`-q`).
    Quiet,
    /// Steps, warnings, progress.
    #[default]
    Normal,
    /// Every external command (`-v`), and with `-vv` what it prints.
    Verbose,
}

/// Standard output and standard error.
#[derive(Clone, Debug)]
pub struct Ui {
    verbosity: Verbosity,
    terminal: bool,
    color: bool,
    /// Of standard output.
    color_answers: bool,
    began: Instant,
}

/// Columns of an answer that no terminal shows.
const COLUMNS: usize = 80;
/// What to do after a panic.
const AFTER_A_BUG: &str = "farmctl gc clears up after it; a report of it with what was typed helps";
/// The least columns in which text can be read beside others.
const LEAST: usize = 20;

impl Ui {
    /// Looks once what is a terminal, and honours `NO_COLOR` (<https://no-color.org>).
    #[must_use]
    pub fn new(verbosity: Verbosity) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let colors = !no_color && !dumb;
        let color_answers = std::io::stdout().is_terminal() && colors;
        let began = Instant::now();
        Self { verbosity, terminal, color: terminal && colors, color_answers, began }
    }

    /// Whether colours are wanted on standard error.
    #[must_use]
    pub fn color(&self) -> bool {
        self.color
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    #[expect(clippy::unused_self, reason = "only who holds the Ui may write")]
    fn write_err(&self, line: &str) {
        // A closed standard error is no reason to stop half-way.
        drop(writeln!(std::io::stderr().lock(), "{line}"));
    }

    /// Says what is being done.
    pub fn step(&self, text: impl AsRef<str>) {
        if self.verbosity > Verbosity::Quiet {
            self.write_err(&format!("{} {}", self.paint("36", "·"), plain(text.as_ref())));
        }
    }

    /// Says that a verb is finished, with the time it took.
    pub fn done(&self, text: impl AsRef<str>) {
        if self.verbosity > Verbosity::Quiet {
            let time = seconds(self.began.elapsed());
            let text = plain(text.as_ref());
            self.write_err(&format!("{} {text} ({time})", self.paint("32", "✓")));
        }
    }

    /// Says that one of many things is done, with the time it took.
    pub fn took(&self, text: impl AsRef<str>, time: Duration) {
        self.already(format!("{} ({})", text.as_ref(), seconds(time)));
    }

    /// Says that there was nothing to do.
    pub fn already(&self, text: impl AsRef<str>) {
        if self.verbosity > Verbosity::Quiet {
            self.write_err(&format!("{} {}", self.paint("32", "✓"), plain(text.as_ref())));
        }
    }

    /// Says what the user should know although nothing failed.
    pub fn warn(&self, text: impl AsRef<str>) {
        if self.verbosity > Verbosity::Quiet {
            let text = plain(text.as_ref());
            self.write_err(&format!("{} {text}", self.paint("33", "warning:")));
        }
    }

    /// Prints an error; the only thing `-q` lets through.
    pub fn error(&self, rendered: &str) {
        let mut text = plain(rendered).into_owned();
        if self.color {
            text = text.replacen("error:", "\x1b[31merror:\x1b[0m", 1);
            text = text.replacen("\nhint:", "\n\x1b[36mhint:\x1b[0m", 1);
        }
        self.write_err(&text);
    }

    /// Has a panic printed as an error is, unless somebody asks for Rust's own words.
    pub fn tell_panics(&self) {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            return;
        }
        let ui = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.to_string().replacen(":\n", ": ", 1);
            let bug = text.strip_prefix("panicked at ").unwrap_or(&text);
            ui.error(&format!("error: a bug in farmctl: {bug}\nhint: {AFTER_A_BUG}"));
        }));
    }

    /// Prints an answer on standard output.
    pub fn answer(&self, text: impl AsRef<str>) {
        // A reader that went away (`farmctl list | head -1`) has what it wanted.
        drop(writeln!(std::io::stdout().lock(), "{}", plain(text.as_ref())));
    }

    /// Prints an answer without a line end, as it comes (`logs -f`).
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn stream(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Prints an answer as JSON.
    pub fn json(&self, value: &impl Serialize) {
        self.answer(json(value));
    }

    /// Prints an answer that has colours, where the terminal may show them.
    pub fn picture(&self, picture: &Picture) {
        let paint = |(color, text): &(Option<Color>, String)| match color {
            Some(color) if self.color_answers => {
                format!("\x1b[{}m{}\x1b[0m", color.code(), plain(text))
            }
            _ => plain(text).into_owned(),
        };
        let text: String = picture.0.iter().map(paint).collect();
        drop(writeln!(std::io::stdout().lock(), "{text}"));
    }

    /// How many columns the terminal has that shows answers; without one, 80.
    #[must_use]
    pub fn columns(&self) -> usize {
        terminal_columns().unwrap_or(COLUMNS)
    }

    /// How wide tables may be: as the terminal that shows them; without one, as they like.
    #[must_use]
    pub fn width(&self) -> usize {
        terminal_columns().unwrap_or(usize::MAX)
    }

    /// A bar for work whose size is known, in bytes: what, how far, rate, time left.
    #[must_use]
    pub fn meter(&self, what: &str) -> Meter {
        let shown = self.terminal && self.verbosity == Verbosity::Normal;
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = "  {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = ProgressBar::with_draw_target(Some(0), target);
        bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant"));
        bar.set_message(what.to_owned());
        Meter(bar)
    }

    /// A line that shows a tool's latest output while it works.
    #[must_use]
    pub fn spinner(&self, what: &str) -> Spinner {
        let shown = self.terminal && self.verbosity == Verbosity::Normal;
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "  {spinner} {elapsed} {prefix} {wide_msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant"));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Spinner(bar)
    }
}

/// A progress bar; gone when dropped.
#[derive(Debug)]
pub struct Meter(ProgressBar);

impl Meter {
    /// Shows that `done` of `total` bytes are through.
    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A live line; gone when dropped.
#[derive(Debug)]
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Shows this text.
    pub fn show(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A text of which some has a colour.
#[derive(Clone, Debug, Default)]
pub struct Picture(Vec<(Option<Color>, String)>);

/// The colours of a picture, which the terminal's own settings make readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// Green.
    Green,
    /// Yellow.
    Yellow,
    /// Blue.
    Blue,
    /// Magenta.
    Magenta,
}

impl Color {
    /// Select Graphic Rendition (console_codes(4)).
    fn code(self) -> u8 {
        match self {
            Color::Green => 32,
            Color::Yellow => 33,
            Color::Blue => 34,
            Color::Magenta => 35,
        }
    }
}

impl Picture {
    /// Adds text without a colour.
    pub fn add(&mut self, text: impl Into<String>) {
        self.0.push((None, text.into()));
    }

    /// Adds text of this colour.
    pub fn paint(&mut self, color: Color, text: impl Into<String>) {
        self.0.push((Some(color), text.into()));
    }

    /// The text alone.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }
}

/// A value as JSON, in lines, with nothing in it that a terminal would obey.
#[must_use]
pub fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("our values have string keys");
    let is_told = |letter: char| letter.is_control() && letter != '\n';
    if !text.contains(is_told) {
        return text;
    }
    // JSON has an escape of its own; that of the terminal would be none in it.
    let escape = |letter: char| match is_told(letter) {
        true => format!("\\u{:04x}", u32::from(letter)),
        false => letter.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A text without what a terminal would obey: names out of a tarball and lines of tools
/// are others' words. Line ends and tabulators stay.
fn plain(text: &str) -> Cow<'_, str> {
    escape(text, |letter| letter.is_control() && !matches!(letter, '\n' | '\t'))
}

/// A name or path as part of a line: with nothing in it that could end the line.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, char::is_control)
}

fn escape(text: &str, which: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&which) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|letter| match which(letter) {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    });
    Cow::Owned(escaped.collect())
}

/// A time as people read it.
#[must_use]
pub fn seconds(time: Duration) -> String {
    let all = time.as_secs_f64();
    if all < 60.0 {
        format!("{all:.1} s")
    } else {
        format!("{:.0} min {:.0} s", (all / 60.0).floor(), all % 60.0)
    }
}

/// A size as people read it, in binary units.
#[must_use]
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// So many things, in words: `1 path`, `2 paths`.
#[must_use]
pub fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// How many columns the terminal has that shows answers, if there is one and it knows.
fn terminal_columns() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(std::io::stdout())?;
    (columns > 0).then_some(columns.into())
}

/// Rows in columns, each as wide as its widest cell.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    folded(rows, usize::MAX)
}

/// The same within so many columns of a terminal: the last cells are folded between words, and
/// where there is little room for them, on lines of their own.
#[must_use]
pub fn folded(rows: &[Vec<String>], width: usize) -> String {
    folded_rows(rows, width).join("\n")
}

/// The same, the lines of each row by themselves.
#[must_use]
pub fn folded_rows(rows: &[Vec<String>], width: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let left: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
    let whole = left + widths.last().unwrap_or(&0);
    let is_below = whole > width && width < left + LEAST;
    let indent = if is_below { 4 } else { left };
    rows.iter()
        .map(|row| {
            let mut cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            if whole > width && row.len() == columns {
                let last = fold(&row[columns - 1], width.saturating_sub(indent));
                cells[columns - 1] = last.join(&format!("\n{:indent$}", ""));
            }
            let last = if is_below { cells.split_off(columns - 1) } else { Vec::new() };
            let line = cells.join("  ").trim_end().to_owned();
            last.iter().fold(line, |line, last| format!("{line}\n{:indent$}{last}", ""))
        })
        .collect()
}

/// A text in lines of at most `width` columns, but for words that are longer.
fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one from the first");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A day, in UTC, of a time in seconds since 1970.
#[must_use]
pub fn day(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "unknown".to_owned(), |time| time.strftime("%F").to_string())
}

/// A moment, in UTC, of a time in seconds since 1970.
#[must_use]
pub fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "unknown".to_owned(), |time| time.strftime("%F %T").to_string())
}

/// A span of seconds as people read it.
#[must_use]
pub fn span(seconds: i64) -> String {
    match seconds.max(0) {
        time @ 0..=119 => format!("{time} s"),
        time @ 120..=7199 => format!("{} min", time / 60),
        time @ 7200..=172_799 => format!("{} h", time / 3600),
        time => format!("{} days", time / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(plain("café\n\tnext"), "café\n\tnext");
        assert_eq!(plain("\u{1b}[2Jgone\r"), "\\u{1b}[2Jgone\\r");
        assert_eq!(one_line("a\n✓ verified"), "a\\n✓ verified");
    }

    #[test]
    fn a_table_keeps_to_its_width_by_its_last_column() {
        let rows = |texts: &[[&str; 3]]| -> Vec<Vec<String>> {
            texts.iter().map(|row| row.map(str::to_owned).to_vec()).collect()
        };
        let rows =
            rows(&[["BEGAN", "BY", "CHANGE"], ["today", "anna", "from one to the other one"]]);
        let whole = "BEGAN  BY    CHANGE\ntoday  anna  from one to the other one";
        assert_eq!(table(&rows), whole);
        assert_eq!(folded(&rows, 38), whole);
        insta::assert_snapshot!(folded(&rows, 37), @r"
        BEGAN  BY    CHANGE
        today  anna  from one to the other
                     one
        ");
        insta::assert_snapshot!(folded(&rows, 24), @r"
        BEGAN  BY
            CHANGE
        today  anna
            from one to the
            other one
        ");
        // A word that is longer is the terminal's to break: it can be copied whole.
        assert_eq!(fold("see /srv/shop/static now", 8), ["see", "/srv/shop/static", "now"]);
    }

    #[test]
    fn json_is_json_whatever_is_in_it() {
        let names = ["a\u{9b}2J", "\u{7f}\u{1b}", "é\u{85}"];
        let text = json(&names);
        assert_eq!(text, "[\n  \"a\\u009b2J\",\n  \"\\u007f\\u001b\",\n  \"é\\u0085\"\n]");
        assert_eq!(plain(&text), text);
        let back: Vec<String> = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(back, names);
    }
}
