//! The place in /var/lib that an application has for its own.

use super::survey::Survey;

/// The file that names it, and the directory: `/var/lib/NAME` (Filesystem Hierarchy Standard,
/// 5.8.2), in quotes, where NAME is one of the project's. Another's is none of its business.
#[must_use]
pub fn directory<'a>(survey: &'a Survey, names: &[&str]) -> Option<(&'a str, String)> {
    let plain = |name: &str| name.to_lowercase().replace('_', "-");
    let names: Vec<String> = names.iter().map(|name| plain(name)).collect();
    survey.scripts().into_iter().find_map(|(path, text)| {
        let found = text.split(['"', '\'']).skip(1).find_map(|quoted| {
            let name = quoted.strip_prefix("/var/lib/")?.split('/').next()?;
            names.contains(&plain(name)).then(|| format!("/var/lib/{name}"))
        });
        found.map(|directory| (path, directory))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_projects_own_directory_counts() {
        let survey = Survey::from([
            ("cal/paths.py", "DPKG = '/var/lib/dpkg/status'\nLIKE = '/var/lib/calendar'\n"),
            ("cal/settings.py", "FOLDER = \"/var/lib/Cal_Dav/collections\"  # /var/lib/cal\n"),
            ("tests/test_it.py", "FOLDER = '/var/lib/cal'\n"),
        ]);
        let found = |names: &[&str]| directory(&survey, names);
        let own = "/var/lib/Cal_Dav".to_owned();
        assert_eq!(found(&["CalDAV-server", "cal-dav"]), Some(("cal/settings.py", own)));
        assert_eq!(found(&["cal"]), None);
    }
}
