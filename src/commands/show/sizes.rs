//! `farmctl show --sizes`: what the bytes are spent on, as a picture.

use serde::Serialize;

use crate::manifest::Manifest;
use crate::sizes::{Amount, Group, Kind, Part, Sizes};
use crate::ui::{self, Color, Picture};

/// How many parts of a group are shown before the rest is added up.
const SHOWN: usize = 10;
/// Most columns a picture takes: bars say no more when they are longer.
const WIDEST: usize = 100;
/// Fewest columns for names and bars that leave something of both.
const ROOM: usize = 24;
/// A page for a browser, with one place for the release.
const PAGE: &str = include_str!("treemap.html");
/// That place: a JSON text.
const PLACE: &str = "@RELEASE@";

/// One line of the picture.
struct Row {
    name: String,
    amount: Amount,
    /// Whether it is one part, whose bar compares with those of others.
    bar: bool,
}

/// The picture for a terminal of so many columns.
pub(super) fn picture(manifest: &Manifest, sizes: &Sizes, columns: usize) -> Picture {
    let groups: Vec<(&Group, Vec<Row>)> =
        sizes.groups.iter().map(|group| (group, rows(group))).collect();
    let all = groups.iter().flat_map(|(_, rows)| rows);
    let names = all.clone().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let largest = all.clone().filter(|row| row.bar).map(|row| row.amount.unpacked);
    let largest = largest.max().unwrap_or(0);
    let figures = Figures::of(sizes, all.map(|row| row.amount));
    let room = columns.min(WIDEST).saturating_sub(2 + figures.width());
    let (name, bar) = if room < ROOM {
        (names.min(room.max(8)), 0)
    } else {
        let name = names.min(room * 3 / 5);
        (name, room - name - 2)
    };
    let left = if bar > 0 { 2 + name + 2 + bar } else { 2 + name };

    let mut picture = Picture::default();
    let paths = usize::try_from(sizes.total.paths).unwrap_or(usize::MAX);
    let paths = ui::count(paths, "path");
    let title = format!("{} {}: {paths}", manifest.name, manifest.version);
    picture.add(format!("{:<left$}{}\n", cut(&title, left), figures.head()));
    for (group, rows) in &groups {
        let color = color(group.kind);
        let share = percent(group.total.unpacked, sizes.total.unpacked);
        let mut text = format!("{}, {share}", group.kind.title());
        if text.chars().count() > left {
            text = cut(group.kind.title(), left);
        }
        picture.paint(color, format!("{text:<left$}"));
        picture.add(format!("{}\n", figures.show(group.total)));
        for row in rows {
            picture.add(format!("  {:<name$}", cut(&row.name, name)));
            if bar > 0 {
                let drawn = if row.bar { draw(row.amount, largest, bar) } else { String::new() };
                picture.paint(color, format!("  {drawn:<bar$}"));
            }
            picture.add(format!("{}\n", figures.show(row.amount)));
        }
    }
    picture.add(format!("{:<left$}{}", "Total", figures.show(sizes.total)));
    picture
}

/// The largest parts of a group and a line for the others.
fn rows(group: &Group) -> Vec<Row> {
    let shown = if group.parts.len() > SHOWN + 1 { SHOWN } else { group.parts.len() };
    let (first, others) = group.parts.split_at(shown);
    let mut rows: Vec<Row> = first
        .iter()
        .map(|part| Row { name: label(part), amount: part.amount, bar: true })
        .collect();
    if !others.is_empty() {
        let mut amount = Amount::default();
        others.iter().for_each(|part| amount += part.amount);
        rows.push(Row { name: format!("{} others", others.len()), amount, bar: false });
    }
    rows
}

fn label(part: &Part) -> String {
    ui::one_line(&part.name).into_owned()
}

fn color(kind: Kind) -> Color {
    match kind {
        Kind::Packages => Color::Blue,
        Kind::Distributions => Color::Yellow,
        Kind::Project => Color::Green,
        Kind::Generated => Color::Magenta,
    }
}

/// A bar as long as the part is large: dark as far as it is compressed.
fn draw(amount: Amount, largest: u64, width: usize) -> String {
    let length = |bytes: u64| {
        let columns = bytes as f64 / largest.max(1) as f64 * width as f64;
        columns.round() as usize
    };
    // What is there is seen.
    let whole = length(amount.unpacked).clamp(1, width);
    let dark = amount.packed.map_or(whole, |bytes| length(bytes).min(whole));
    "█".repeat(dark) + &"░".repeat(whole - dark)
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// A name in so many columns: of a path the end stays, of anything else the beginning.
fn cut(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return name.to_owned();
    }
    let kept = width.saturating_sub(1);
    if name.starts_with('/') {
        let end: String = name.chars().skip(count - kept).collect();
        format!("…{end}")
    } else {
        let start: String = name.chars().take(kept).collect();
        format!("{start}…")
    }
}

/// The columns of bytes, each as wide as its widest figure.
struct Figures {
    unpacked: usize,
    /// None where no part has been packed.
    packed: Option<usize>,
}

/// Their headings.
const UNPACKED: &str = "unpacked";
const PACKED: &str = "≈ compressed";

impl Figures {
    fn of(sizes: &Sizes, amounts: impl Iterator<Item = Amount>) -> Self {
        let groups = sizes.groups.iter().map(|group| group.total);
        let all: Vec<Amount> = amounts.chain(groups).chain([sizes.total]).collect();
        let widest = |texts: &mut dyn Iterator<Item = String>, head: &str| {
            let widest = texts.map(|text| text.chars().count()).max().unwrap_or(0);
            widest.max(head.chars().count())
        };
        let unpacked = &mut all.iter().map(|amount| ui::size(amount.unpacked));
        let packed = &mut all.iter().filter_map(|amount| amount.packed).map(ui::size);
        Self {
            unpacked: widest(unpacked, UNPACKED),
            packed: sizes.total.packed.map(|_| widest(packed, PACKED)),
        }
    }

    fn width(&self) -> usize {
        2 + self.unpacked + self.packed.map_or(0, |width| 2 + width)
    }

    fn head(&self) -> String {
        let packed = self.packed.map_or(String::new(), |width| format!("  {PACKED:>width$}"));
        format!("  {UNPACKED:>width$}{packed}", width = self.unpacked)
    }

    fn show(&self, amount: Amount) -> String {
        let packed = amount.packed.map_or("?".to_owned(), ui::size);
        let packed = self.packed.map_or(String::new(), |width| format!("  {packed:>width$}"));
        format!("  {:>width$}{packed}", ui::size(amount.unpacked), width = self.unpacked)
    }
}

/// What the page draws.
#[derive(Serialize)]
struct Drawn<'a> {
    name: &'a str,
    version: &'a str,
    architecture: &'a str,
    identity: &'a str,
    sizes: &'a Sizes,
}

/// The page for a browser: one file that fetches nothing.
pub(super) fn page(manifest: &Manifest, identity: &str, sizes: &Sizes) -> String {
    let Manifest { name, version, architecture, .. } = manifest;
    let release = ui::json(&Drawn { name, version, architecture, identity, sizes });
    // It lies in a script element, which ends at the first "</script" whatever is around
    // it; "<!--" there would make it another (HTML, "Restrictions for contents of script
    // elements").
    PAGE.replacen(PLACE, &release.replace('<', "\\u003c"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let value = serde_json::json!({
            "schema": 1, "farmctl": "0.1.0", "name": "shop", "version": "1.0",
            "architecture": "amd64", "epoch": 1_700_000_000,
            "profile": {
                "schema": 1, "name": "shop", "version": "1.0",
                "environment": { "suite": "bookworm" },
            },
            "inputs": { "releases": [], "packages": [], "distributions": [] },
            "files": { "size": 0, "sha256": "" },
            "payload": { "size": 0, "sha256": "", "entries": 0, "content": 0 },
            "segments": [], "set-id": [], "capabilities": [],
        });
        serde_json::from_value(value).expect("every key is there")
    }

    fn group(kind: Kind, parts: &[(&str, u64, Option<u64>)]) -> Group {
        let parts: Vec<Part> = parts
            .iter()
            .map(|(name, unpacked, packed)| Part {
                name: (*name).to_owned(),
                version: None,
                amount: Amount { paths: 3, unpacked: *unpacked, packed: *packed },
            })
            .collect();
        let mut total = Amount::default();
        parts.iter().for_each(|part| total += part.amount);
        Group { kind, total, parts }
    }

    fn sizes(packed: bool) -> Sizes {
        let part = |name, mib: u64| (name, mib << 20, packed.then_some(mib << 18));
        let many: Vec<String> = (0..14).map(|number| format!("lib{number}")).collect();
        let mut packages = vec![part("perl-base", 48), part("libpython3.11-minimal", 31)];
        packages.extend(many.iter().map(|name| part(name, 1)));
        let groups = vec![
            group(Kind::Packages, &packages),
            group(Kind::Distributions, &[part("Django", 8)]),
            group(Kind::Project, &[part("/srv/shop/app/static/images/2024/large\n", 12)]),
            group(Kind::Generated, &[("/etc", 700, packed.then_some(90))]),
        ];
        let mut total = Amount::default();
        groups.iter().for_each(|group| total += group.total);
        Sizes { total, groups }
    }

    fn drawn(packed: bool, columns: usize) -> String {
        let text = picture(&manifest(), &sizes(packed), columns).text();
        assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
        text
    }

    #[test]
    fn bars_are_as_long_as_the_parts_are_large() {
        insta::assert_snapshot!(drawn(true, 80), @r"
        shop 1.0: 57 paths                                        unpacked  ≈ compressed
        Debian packages, 82 %                                    93.00 MiB     23.25 MiB
          perl-base                        █████░░░░░░░░░░░░░░   48.00 MiB     12.00 MiB
          libpython3.11-minimal            ███░░░░░░░░░          31.00 MiB      7.75 MiB
          lib0                             ░                      1.00 MiB    256.00 KiB
          lib1                             ░                      1.00 MiB    256.00 KiB
          lib2                             ░                      1.00 MiB    256.00 KiB
          lib3                             ░                      1.00 MiB    256.00 KiB
          lib4                             ░                      1.00 MiB    256.00 KiB
          lib5                             ░                      1.00 MiB    256.00 KiB
          lib6                             ░                      1.00 MiB    256.00 KiB
          lib7                             ░                      1.00 MiB    256.00 KiB
          6 others                                                6.00 MiB      1.50 MiB
        Python distributions, 7 %                                 8.00 MiB      2.00 MiB
          Django                           █░░                    8.00 MiB      2.00 MiB
        The project, 11 %                                        12.00 MiB      3.00 MiB
          …app/static/images/2024/large\n  █░░░░                 12.00 MiB      3.00 MiB
        Generated, 0 %                                               700 B          90 B
          /etc                             ░                         700 B          90 B
        Total                                                   113.00 MiB     28.25 MiB
        ");
    }

    #[test]
    fn a_narrow_terminal_has_the_figures() {
        insta::assert_snapshot!(drawn(true, 42), @r"
        shop 1.0: 57 pa…    unpacked  ≈ compressed
        Debian packages    93.00 MiB     23.25 MiB
          perl-base        48.00 MiB     12.00 MiB
          libpython3.11…   31.00 MiB      7.75 MiB
          lib0              1.00 MiB    256.00 KiB
          lib1              1.00 MiB    256.00 KiB
          lib2              1.00 MiB    256.00 KiB
          lib3              1.00 MiB    256.00 KiB
          lib4              1.00 MiB    256.00 KiB
          lib5              1.00 MiB    256.00 KiB
          lib6              1.00 MiB    256.00 KiB
          lib7              1.00 MiB    256.00 KiB
          6 others          6.00 MiB      1.50 MiB
        Python distribu…    8.00 MiB      2.00 MiB
          Django            8.00 MiB      2.00 MiB
        The project        12.00 MiB      3.00 MiB
          …/2024/large\n   12.00 MiB      3.00 MiB
        Generated, 0 %         700 B          90 B
          /etc                 700 B          90 B
        Total             113.00 MiB     28.25 MiB
        ");
    }

    #[test]
    fn what_was_never_packed_has_no_compressed_size() {
        insta::assert_snapshot!(drawn(false, 60), @r"
        shop 1.0: 57 paths                                  unpacked
        Debian packages, 82 %                              93.00 MiB
          perl-base                    █████████████████   48.00 MiB
          libpython3.11-minimal        ███████████         31.00 MiB
          lib0                         █                    1.00 MiB
          lib1                         █                    1.00 MiB
          lib2                         █                    1.00 MiB
          lib3                         █                    1.00 MiB
          lib4                         █                    1.00 MiB
          lib5                         █                    1.00 MiB
          lib6                         █                    1.00 MiB
          lib7                         █                    1.00 MiB
          6 others                                          6.00 MiB
        Python distributions, 7 %                           8.00 MiB
          Django                       ███                  8.00 MiB
        The project, 11 %                                  12.00 MiB
          …static/images/2024/large\n  ████                12.00 MiB
        Generated, 0 %                                         700 B
          /etc                         █                       700 B
        Total                                             113.00 MiB
        ");
    }

    #[test]
    fn a_page_is_whole_and_fetches_nothing() {
        let mut sizes = sizes(true);
        let name = "/srv/</script><script>alert(1)</script><!-- \u{9b}\" & '@RELEASE@";
        sizes.groups[2].parts[0].name = name.to_owned();
        let page = page(&manifest(), "00ff", &sizes);
        assert_eq!(page.matches("</script>").count(), 2, "the page's own");
        assert_eq!(page.matches("<script").count(), 2, "the page's own");
        assert!(!page.contains("<!--") && !page.contains('\u{9b}'), "{page}");
        for link in ["http:", "https:", "src=", "href=", "@import", "url(", "fetch("] {
            assert!(!page.contains(link), "{link}");
        }
        let (_, release) = page.split_once("id=\"release\">").expect("it is there");
        let (release, _) = release.split_once("</script>").expect("it ends");
        let release: serde_json::Value = serde_json::from_str(release).expect("it is JSON");
        assert_eq!(release["sizes"]["groups"][2]["parts"][0]["name"], name);
        assert_eq!(release["identity"], "00ff");
    }
}
