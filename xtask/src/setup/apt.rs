// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Debian packages of any suite and architecture, without a change to the machine's own package lists.
//!
//! A [`State`] is apt's state in a folder of the cache: its sources are derived from the machine's own (same mirror, same
//! keys, other suites), so that no mirror needs to be known here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;

use crate::process;

/// A source of packages, as in `sources.list(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where.
    pub uri: String,
    /// Which distributions.
    pub suites: Vec<String>,
    /// Which parts of them.
    pub components: Vec<String>,
    /// A key file, or the keys themselves; empty for apt's default keys.
    pub signed_by: String,
}

impl Source {
    /// Its text.
    pub fn render(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
            self.uri,
            self.suites.join(" "),
            self.components.join(" ")
        );
        if !self.signed_by.is_empty() {
            text.push_str(&format!("Signed-By: {}\n", self.signed_by));
        }
        text
    }
}

/// The machine's own sources that carry Debian's `main`.
///
/// # Errors
/// If there is none.
pub fn machine_sources() -> Result<Vec<Source>> {
    let etc = Path::new("/etc/apt");
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            _ => {}
        }
    }
    sources.retain(|source| source.components.iter().any(|component| component == "main"));
    if sources.is_empty() {
        bail!(
            "no Debian package source in /etc/apt/sources.list or /etc/apt/sources.list.d: add your mirror there"
        );
    }
    Ok(sources)
}

/// The sources of `codename` itself, its updates and security fixes.
pub fn of_release(sources: &[Source], codename: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for source in sources {
        let suites: Vec<_> = source.suites.iter().filter(|suite| is_of(suite, codename)).cloned().collect();
        if !suites.is_empty() {
            found.push(Source { suites, components: vec!["main".to_owned()], ..source.clone() });
        }
    }
    found
}

fn is_of(suite: &str, codename: &str) -> bool {
    suite == codename || suite.strip_prefix(codename).is_some_and(|rest| rest.starts_with(['-', '/']))
}

/// The mirror that has `codename` itself; it has Debian's other suites as well.
///
/// # Errors
/// If the machine has no such source.
pub fn mirror(sources: &[Source], codename: &str, suites: &[&str]) -> Result<Source> {
    let main = sources
        .iter()
        .find(|source| source.suites.iter().any(|suite| suite == codename))
        .with_context(|| format!("no source of Debian {codename} in /etc/apt: add your mirror there"))?;
    Ok(Source {
        suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
        components: vec!["main".to_owned()],
        ..main.clone()
    })
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push('\n');
                    value.push_str(line);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let field = |name: &str| {
            fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        if !words("types").iter().any(|word| word == "deb") || field("enabled").eq_ignore_ascii_case("no") {
            continue;
        }
        for uri in words("uris") {
            sources.push(Source {
                uri,
                suites: words("suites"),
                components: words("components"),
                signed_by: field("signed-by"),
            });
        }
    }
    sources
}

fn parse_line(line: &str) -> Option<Source> {
    let mut rest = line.split('#').next()?.trim().strip_prefix("deb ")?.trim_start();
    let mut signed_by = String::new();
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        rest = after;
        signed_by =
            options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).unwrap_or("").to_owned();
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { uri: words.next()?, suites: vec![words.next()?], components: words.collect(), signed_by })
}

/// A private state of apt.
pub struct State {
    folder: PathBuf,
    architecture: String,
}

impl State {
    /// Makes the state in `folder`, with these sources, and fetches the lists of packages.
    ///
    /// # Errors
    /// If a list can't be fetched.
    pub fn update(folder: &Path, architecture: &str, sources: &[Source]) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let text: Vec<_> = sources.iter().map(Source::render).collect();
        fs::write(folder.join("private.sources"), text.join("\n"))?;
        let state = Self { folder: folder.to_path_buf(), architecture: architecture.to_owned() };
        process::run(state.command("apt-get").args(["-q", "update"])).context(
            "can't fetch Debian's package lists: is the network up, and is the mirror in /etc/apt right?",
        )?;
        Ok(state)
    }

    /// Of one suite of the machine's mirror, in a folder NAME-SUITE of the cache. None: there is no such suite.
    ///
    /// # Errors
    /// If the machine names no mirror.
    pub fn of_suite(
        layout: &Layout,
        (name, suite): (&str, &str),
        sources: &[Source],
        codename: &str,
    ) -> Result<Option<Self>> {
        let source = mirror(sources, codename, &[suite])?;
        Ok(Self::update(&layout.cache.join(format!("apt/{name}-{suite}")), "arm64", &[source]).ok())
    }

    /// `apt-get` or `apt-cache` on this state.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options());
        command
    }

    /// The options that select this state.
    pub fn options(&self) -> Vec<String> {
        let folder = self.folder.display();
        let mut options = Vec::new();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/private.sources"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            options.extend(["-o".to_owned(), option]);
        }
        options
    }

    /// Downloads `packages`, and all that they need on a machine where nothing is installed; returns all their paths.
    ///
    /// # Errors
    /// If one does not exist, they contradict each other, or can't be fetched.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let nothing = self.folder.join("nothing-installed");
        fs::write(&nothing, "")?;
        let install = |option: &str| {
            let mut command = self.command("apt-get");
            command.args(["-o", &format!("Dir::State::status={}", nothing.display())]);
            command.args(["-q", "-y", "--no-install-recommends", option, "install"]).args(packages);
            command
        };
        // 'URI' file-name size hash; only of those that are not there yet, so of a folder of their own.
        let archives = self.folder.join("cache/archives");
        drop(fs::remove_dir_all(&archives));
        fs::create_dir_all(archives.join("partial"))?;
        let uris = process::output(&mut install("--print-uris"))?;
        process::run(&mut install("--download-only"))?;
        let names = uris.lines().filter(|line| line.starts_with('\''));
        Ok(names.filter_map(|line| line.split_whitespace().nth(1)).map(|name| archives.join(name)).collect())
    }

    /// Every version of a package: pairs of version and dependencies.
    ///
    /// # Errors
    /// If apt fails; a package that does not exist has no versions.
    pub fn versions(&self, package: &str) -> Result<Vec<(String, String)>> {
        let Ok(text) = process::output(self.command("apt-cache").args(["show", package])) else {
            return Ok(Vec::new());
        };
        let field = |stanza: &str, name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
        };
        Ok(text
            .split("\n\n")
            .map(|stanza| (field(stanza, "Version:"), field(stanza, "Depends:")))
            .filter(|(version, _)| !version.is_empty())
            .collect())
    }

    /// Downloads a package (`name` or `name=version`) into `folder`, unless it is there, and returns its path.
    ///
    /// # Errors
    /// If it does not exist or can't be fetched.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        let uris = process::output(self.command("apt-get").args(["download", "--print-uris", package]))?;
        // 'URI' file-name size hash
        let name = uris
            .lines()
            .filter(|line| line.starts_with('\''))
            .find_map(|line| line.split_whitespace().nth(1))
            .with_context(|| format!("Debian has no package {package}"))?;
        fs::create_dir_all(folder)?;
        let path = folder.join(name);
        if !path.is_file() {
            // apt renames a finished download into place.
            process::run(self.command("apt-get").args(["-q", "download", package]).current_dir(folder))?;
        }
        Ok(path)
    }
}

/// Unpacks a package into a folder, without installing it.
///
/// # Errors
/// If the file is damaged; then it is removed, so that the next run fetches it anew.
pub fn unpack(package: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let result = process::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(into));
    if result.is_err() {
        fs::remove_file(package).with_context(|| format!("can't remove {}", package.display()))?;
    }
    result.with_context(|| format!("{} was damaged and is removed: run set-up again", package.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_are_read() {
        let deb822 = "Types: deb deb-src\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
                      Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://x\n";
        let sources = parse_deb822(deb822);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        let line =
            parse_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian trixie main contrib # mine")
                .unwrap();
        assert_eq!((line.uri.as_str(), line.signed_by.as_str()), ("http://mirror/debian", "/k.gpg"));
        assert_eq!(line.components, ["main", "contrib"]);
        assert_eq!(parse_line("# deb http://mirror/debian trixie main"), None);
        assert_eq!(parse_line("deb-src http://mirror/debian trixie main"), None);
    }

    #[test]
    fn keys_inside_a_source_are_kept() {
        let sources = parse_deb822(
            "Types: deb\nURIs: http://m\nSuites: sid\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n",
        );
        assert!(sources[0].render().contains("Signed-By: \n -----BEGIN\n .\n abc\n"));
    }

    #[test]
    fn suites_belong_to_their_release() {
        let source = |suite: &str| Source {
            uri: suite.to_owned(),
            suites: vec![suite.to_owned()],
            components: vec!["main".to_owned()],
            signed_by: String::new(),
        };
        let sources = [
            source("bookworm"),
            source("bookworm-security"),
            source("bookworm/updates"),
            source("bookwormish"),
        ];
        assert_eq!(of_release(&sources, "bookworm").len(), 3);
        assert!(mirror(&sources, "trixie", &["sid"]).is_err());
    }
}
