//! Where text lies: packages, each a folder or a file.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::fs::{Fs, Kind};

/// A folder, or a single file, whose text belongs together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name without a version.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

impl Package {
    /// The packages of one family are held out together: crates of one project share text. The family is the part of
    /// the name before the first `-` or `_`.
    pub fn family(&self) -> &str {
        self.name.split(['-', '_']).next().unwrap_or(&self.name)
    }
}

/// The packages of a folder, and how many older versions were passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packages {
    /// Sorted by name.
    pub packages: Vec<Package>,
    /// Folders left out because a later version of the same crate is there: two versions are nearly the same text.
    pub older_versions: u64,
}

/// The sources that cargo has fetched: `registry/src/<registry>/<name>-<version>` under `cargo_home`. Of each crate the
/// latest version is taken.
///
/// # Errors
/// If there are none, or the folders cannot be listed.
pub fn cargo_packages(fs: &dyn Fs, cargo_home: &Path) -> Result<Packages> {
    let root = cargo_home.join("registry").join("src");
    let list = |dir: &Path| fs.list(dir).map_err(Error::io(dir, "list"));
    let mut latest: BTreeMap<String, (String, PathBuf)> = BTreeMap::new();
    let mut older_versions = 0;
    if fs.exists(&root).map_err(Error::io(&root, "look for"))? {
        for registry in list(&root)?.into_iter().filter(|entry| entry.kind == Kind::Dir) {
            let registry = root.join(registry.name);
            for entry in list(&registry)?.into_iter().filter(|entry| entry.kind == Kind::Dir) {
                let folder = entry.name.to_string_lossy().into_owned();
                let Some((name, version)) = name_and_version(&folder) else { continue };
                let path = registry.join(&entry.name);
                match latest.get(name) {
                    None => {
                        latest.insert(name.to_owned(), (version.to_owned(), path));
                    }
                    Some((other, _)) => {
                        older_versions += 1;
                        if compare_versions(version, other).is_gt() {
                            latest.insert(name.to_owned(), (version.to_owned(), path));
                        }
                    }
                }
            }
        }
    }
    if latest.is_empty() {
        let root = root.display();
        return Err(Error::TooLittle(format!(
            "no crate sources under {root}; run `cargo fetch` in a project, or name a folder of text"
        )));
    }
    let packages = latest.into_iter().map(|(name, (_, path))| Package { name, path }).collect();
    Ok(Packages { packages, older_versions })
}

/// The text under any folder: each of its subfolders is a package, and so is each file directly in it.
///
/// # Errors
/// If the folder cannot be listed.
pub fn folder_packages(fs: &dyn Fs, dir: &Path) -> Result<Packages> {
    let entries = fs.list(dir).map_err(Error::io(dir, "list"))?;
    let package = |entry: crate::fs::Entry| Package {
        name: entry.name.to_string_lossy().into_owned(),
        path: dir.join(&entry.name),
    };
    let packages = entries.into_iter().filter(|entry| entry.kind != Kind::Other).map(package).collect();
    Ok(Packages { packages, older_versions: 0 })
}

/// Splits `name-1.2.3` at the first hyphen that a version follows.
fn name_and_version(folder: &str) -> Option<(&str, &str)> {
    folder.match_indices('-').map(|(at, _)| (&folder[..at], &folder[at + 1..])).find(|(name, version)| {
        let major = version.bytes().take_while(u8::is_ascii_digit).count();
        !name.is_empty() && major > 0 && version[major..].starts_with('.')
    })
}

/// The order of semantic versions, as far as it is needed: numbers, then a pre-release before its release.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let parse = |version: &str| {
        let version = version.split('+').next().unwrap_or("").to_owned();
        let (numbers, pre) = version.split_once('-').unwrap_or((&version, ""));
        let numbers: Vec<u64> = numbers.split('.').map(|part| part.parse().unwrap_or(0)).collect();
        (numbers, pre.is_empty(), pre.to_owned())
    };
    parse(a).cmp(&parse(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FaultFs;

    #[test]
    fn versions_are_split_off_and_ordered() {
        for (folder, expected) in [
            ("syn-2.0.117", Some(("syn", "2.0.117"))),
            ("md-5-0.10.6", Some(("md-5", "0.10.6"))),
            ("libc-1.0.0-alpha.5", Some(("libc", "1.0.0-alpha.5"))),
            ("zstd-sys-2.0.16+zstd.1.5.7", Some(("zstd-sys", "2.0.16+zstd.1.5.7"))),
            ("no-version", None),
        ] {
            assert_eq!(name_and_version(folder), expected);
        }
        for (lower, higher) in [("1.9.0", "1.10.0"), ("1.0.0-alpha.5", "1.0.0"), ("0.2.186", "1.0.0-alpha.5")]
        {
            assert_eq!(compare_versions(lower, higher), Ordering::Less);
        }
    }

    #[test]
    fn the_latest_version_of_each_crate_is_taken() {
        let fs = FaultFs::new();
        for folder in ["r1/syn-2.0.9", "r1/syn-2.0.10", "r2/syn-1.0.0", "r2/num-traits-0.2.0"] {
            fs.create_dirs(&Path::new("/cargo/registry/src").join(folder)).unwrap();
        }
        let found = cargo_packages(&fs, Path::new("/cargo")).unwrap();
        let names: Vec<_> =
            found.packages.iter().map(|p| (p.name.as_str(), p.path.to_str().unwrap())).collect();
        let root = "/cargo/registry/src";
        let expected = [format!("{root}/r2/num-traits-0.2.0"), format!("{root}/r1/syn-2.0.10")];
        assert_eq!(names, [("num-traits", expected[0].as_str()), ("syn", expected[1].as_str())]);
        assert_eq!(found.older_versions, 2);
        assert_eq!(found.packages[0].family(), "num");
        assert!(matches!(cargo_packages(&fs, Path::new("/none")), Err(Error::TooLittle(_))));
    }
}
