//! Python source, read as far as its logical lines go and never run: what is assigned,
//! imported, called and defined.

/// A logical line: brackets closed, comments left out, line breaks inside become blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Columns it is indented by; 0 at the top of the module.
    pub indent: usize,
    /// The line.
    pub text: String,
}

/// The logical lines of a source
/// (<https://docs.python.org/3/reference/lexical_analysis.html#line-structure>).
#[must_use]
pub fn lines(source: &str) -> Vec<Line> {
    let mut reader = Reader::default();
    let mut rest = source;
    while let Some(letter) = rest.chars().next() {
        let taken = reader.take(rest, letter);
        rest = &rest[taken..];
    }
    reader.end();
    reader.lines
}

#[derive(Default)]
struct Reader {
    lines: Vec<Line>,
    text: String,
    indent: usize,
    /// Whether the line began behind a `;`: it is indented as the one before.
    goes_on: bool,
    depth: usize,
    /// The quotes that end the string being read.
    quotes: Option<&'static str>,
}

impl Reader {
    /// Takes one letter, or what belongs together; answers how many bytes it was.
    fn take(&mut self, rest: &str, letter: char) -> usize {
        if let Some(quotes) = self.quotes {
            if let Some(escaped) = rest.strip_prefix('\\') {
                let length = 1 + escaped.chars().next().map_or(0, char::len_utf8);
                self.text.push_str(&rest[..length]);
                return length;
            }
            // A quote that is not closed ends with its line; what follows is code again.
            if rest.starts_with(quotes) || (letter == '\n' && quotes.len() == 1) {
                self.quotes = None;
                self.text.push_str(if letter == '\n' { "" } else { quotes });
                return if letter == '\n' { 0 } else { quotes.len() };
            }
            self.text.push(letter);
            return letter.len_utf8();
        }
        if let Some(quotes) =
            ["\"\"\"", "'''", "\"", "'"].into_iter().find(|it| rest.starts_with(*it))
        {
            self.quotes = Some(quotes);
            self.text.push_str(quotes);
            return quotes.len();
        }
        match letter {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '\\' if rest[1..].starts_with('\n') => {
                self.text.push(' ');
                2
            }
            '\n' if self.depth > 0 => {
                self.text.push(' ');
                1
            }
            '\n' => {
                self.end();
                self.indent = 0;
                self.goes_on = false;
                1
            }
            ';' if self.depth == 0 => {
                self.end();
                self.goes_on = true;
                1
            }
            ' ' | '\t' if self.text.is_empty() => {
                self.indent += usize::from(!self.goes_on);
                1
            }
            _ => {
                match letter {
                    '(' | '[' | '{' => self.depth += 1,
                    ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                self.text.push(letter);
                letter.len_utf8()
            }
        }
    }

    fn end(&mut self) {
        let text = std::mem::take(&mut self.text).trim().to_owned();
        self.depth = 0;
        if !text.is_empty() {
            self.lines.push(Line { indent: self.indent, text });
        }
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_alphabetic() || letter == '_')
        && text.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
}

impl Line {
    /// Name and value of `NAME = VALUE` or `NAME: TYPE = VALUE`.
    #[must_use]
    pub fn assignment(&self) -> Option<(&str, &str)> {
        let (target, value) = self.text.split_once('=')?;
        if value.starts_with('=') {
            return None;
        }
        let name = target.split(':').next().unwrap_or(target).trim();
        is_identifier(name).then(|| (name, value.trim()))
    }

    /// The words of `import a.b as c` and `from a import b as c, d`: where it comes from
    /// and the name it is known by.
    #[must_use]
    pub fn imports(&self) -> Vec<(String, String)> {
        let named = |item: &str, from: &str| {
            let item = item.trim().trim_matches(['(', ')']).trim();
            let (what, known) = item.split_once(" as ").unwrap_or((item, item));
            (format!("{from}{}", what.trim()), known.trim().to_owned())
        };
        if let Some(modules) = self.text.strip_prefix("import ") {
            return modules.split(',').map(|item| named(item, "")).collect();
        }
        let from = self.text.strip_prefix("from ").and_then(|rest| rest.split_once(" import "));
        let Some((module, items)) = from else { return Vec::new() };
        items
            .split(',')
            .filter(|item| !item.trim().trim_matches(['(', ')']).trim().is_empty())
            .map(|item| named(item, &format!("{}.", module.trim())))
            .collect()
    }

    /// Name and parameters of `def NAME(PARAMETERS)`, and whether it is `async`.
    #[must_use]
    pub fn function(&self) -> Option<(&str, Vec<&str>, bool)> {
        let (rest, is_async) = match self.text.strip_prefix("async ") {
            Some(rest) => (rest.trim_start(), true),
            None => (self.text.as_str(), false),
        };
        let (name, rest) = rest.strip_prefix("def ")?.split_once('(')?;
        Some((name.trim(), split(inside(rest)), is_async))
    }
}

/// What stands before the bracket that closes, quotes and inner brackets respected.
fn inside(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, letter) in outside_quotes(text) {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return &text[..at],
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// Letters that are not in quotes, with their places.
fn outside_quotes(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut open = None;
    let mut escaped = false;
    text.char_indices().filter(move |(_, letter)| {
        if escaped {
            escaped = false;
        } else if open.is_some() && *letter == '\\' {
            escaped = true;
        } else if open == Some(*letter) {
            open = None;
            return false;
        } else if open.is_none() && matches!(letter, '"' | '\'') {
            open = Some(*letter);
        }
        open.is_none()
    })
}

/// Parts between commas that stand in no bracket and no quotes.
#[must_use]
pub fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut depth) = (0, 0_usize);
    for (at, letter) in outside_quotes(text) {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// The name and the arguments of a value that is one call: `Flask(__name__)`.
#[must_use]
pub fn call(value: &str) -> Option<(&str, Vec<&str>)> {
    let (name, rest) = value.split_once('(')?;
    let name = name.trim();
    let is_name = !name.is_empty() && name.split('.').all(is_identifier);
    is_name.then(|| (name, split(inside(rest))))
}

/// The first argument, if it is a plain string, of each call whose name ends like this:
/// `f("x", y)` for `f`.
#[must_use]
pub fn first_strings(text: &str, name: &str) -> Vec<String> {
    let begin = format!("{name}(");
    let found = text
        .match_indices(&begin)
        .filter_map(|(at, _)| string(split(inside(&text[at + begin.len()..])).first()?));
    found.collect()
}

/// The argument of a call by its keyword.
#[must_use]
pub fn keyword<'a>(arguments: &[&'a str], name: &str) -> Option<&'a str> {
    arguments.iter().find_map(|argument| {
        let (key, value) = argument.split_once('=')?;
        (key.trim() == name && !value.starts_with('=')).then(|| value.trim())
    })
}

/// The text of a value that is nothing but one plain string.
#[must_use]
pub fn string(value: &str) -> Option<String> {
    let value = value.trim();
    let bare = value.strip_prefix(['r', 'u', 'R', 'U']).unwrap_or(value);
    let quotes =
        ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| bare.starts_with(*quotes))?;
    let inner = bare.strip_prefix(quotes)?.strip_suffix(quotes)?;
    (!inner.contains(quotes) && !inner.contains('\\')).then(|| inner.to_owned())
}

/// The texts of a list or tuple of plain strings; others in it are passed over.
#[must_use]
pub fn strings(value: &str) -> Option<Vec<String>> {
    let inner = value.trim().strip_prefix(['[', '('])?;
    Some(split(inside(inner)).into_iter().filter_map(string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_lines_join_brackets_and_drop_comments() {
        let source = "\"\"\"A module;\nof two lines.\"\"\"\n# nothing\nimport os; import re\n\
                      A = [  # one\n    'x#', \"y)\",\n]\nif A:\n    b: int = 1 + \\\n        2\n";
        let found: Vec<(usize, String)> =
            lines(source).into_iter().map(|line| (line.indent, line.text)).collect();
        let line = |indent: usize, text: &str| (indent, text.to_owned());
        assert_eq!(
            found,
            [
                line(0, "\"\"\"A module;\nof two lines.\"\"\""),
                line(0, "import os"),
                line(0, "import re"),
                line(0, "A = [       'x#', \"y)\", ]"),
                line(0, "if A:"),
                line(4, "b: int = 1 +          2"),
            ]
        );
    }

    fn line(text: &str) -> Line {
        lines(text).into_iter().next().expect("there is a line")
    }

    #[test]
    fn assignments_imports_and_definitions_are_told_apart() {
        assert_eq!(line("app = Flask(__name__)").assignment(), Some(("app", "Flask(__name__)")));
        assert_eq!(line("HOSTS: list[str] = []").assignment(), Some(("HOSTS", "[]")));
        assert_eq!(line("app.debug = True").assignment(), None);
        assert_eq!(line("a == b").assignment(), None);
        let pair = |from: &str, known: &str| (from.to_owned(), known.to_owned());
        assert_eq!(
            line("from .web import (site as app,\n    main,\n)").imports(),
            [pair(".web.site", "app"), pair(".web.main", "main")]
        );
        assert_eq!(line("import a.b as c, d").imports(), [pair("a.b", "c"), pair("d", "d")]);
        let function = line("async def app(scope, receive=None, *, send: X = {1: (2, 3)}):");
        assert_eq!(
            function.function(),
            Some(("app", vec!["scope", "receive=None", "*", "send: X = {1: (2, 3)}"], true))
        );
    }

    #[test]
    fn calls_and_strings_are_read_where_they_are_plain() {
        let (name, arguments) = call("flask.Flask(__name__, static_folder='a,b')").expect("a call");
        assert_eq!((name, arguments.len()), ("flask.Flask", 2));
        assert_eq!(keyword(&arguments, "static_folder").and_then(string).as_deref(), Some("a,b"));
        assert_eq!(call("[f(x) for x in y]"), None);
        assert_eq!(string("f'{x}'"), None);
        assert_eq!(string("'a' + 'b'"), None);
        assert_eq!(strings("['a', b, \"c>=1\"]").expect("a list"), ["a", "c>=1"]);
    }

    #[test]
    fn an_open_quote_or_bracket_does_not_swallow_everything_for_ever() {
        assert_eq!(lines("a = 'open\nb = 1\n").len(), 2);
        assert_eq!(lines("a = (1,\nb = 2").len(), 1);
        assert_eq!(lines("\u{feff}x = 'é").len(), 1);
    }
}
