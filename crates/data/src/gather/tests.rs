use super::*;
use crate::fs::FaultFs;

const RUST: &str = "//! This module says at length what it is for, and why it is like that.\n\n\
    /// Answers the question that nobody has ever thought of asking so far.\npub fn answer() -> u32 {\n    42\n}\n\n\
    /// Tells whether the answer is the right one for the question asked here.\npub fn right() -> bool {\n    true\n}\n";
const GUIDE: &str = "A guide to nothing in particular.\n\nIt has a few sentences, none of which says very much, and\n\
    it goes on until it is long enough to count as a document in its own right, which takes more than two hundred bytes.\n";

fn write(fs: &FaultFs, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = Path::new("/text").join(path);
        fs.create_dirs(path.parent().unwrap()).unwrap();
        fs.write(&path, text.as_bytes()).unwrap();
    }
}

fn gather_all(fs: &FaultFs, options: &GatherOptions) -> Gathered {
    gather(fs, &folder_packages(fs, Path::new("/text")).unwrap(), options).unwrap()
}

#[test]
fn each_kind_is_found_and_each_reason_counted() {
    let fs = FaultFs::new();
    let long = "word ".repeat(60_000);
    write(
        &fs,
        &[
            ("one/src/lib.rs", RUST),
            ("one/README.md", GUIDE),
            ("one/LICENSE", GUIDE),
            ("one/Cargo.lock", GUIDE),
            ("one/tests/data/novel.txt", GUIDE),
            ("one/src/tiny.rs", "mod a;"),
            ("one/src/long.md", &long),
            ("two/copy.md", &GUIDE.replace(' ', "  ")),
            ("two/.git/config.md", GUIDE),
            ("alone.txt", &GUIDE.replace("guide", "letter")),
        ],
    );
    let gathered = gather_all(&fs, &GatherOptions::default());
    let ids: Vec<(&str, Kind)> = gathered.documents.iter().map(|d| (d.id.as_str(), d.kind)).collect();
    let kept_copy =
        if ids.iter().any(|(id, _)| *id == "one/README.md") { "one/README.md" } else { "two/copy.md" };
    let mut expected = vec![
        ("alone.txt", Kind::Prose),
        (kept_copy, Kind::Prose),
        ("one/src/lib.rs", Kind::Code),
        ("one/src/lib.rs#doc", Kind::DocProse),
    ];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let counts: Vec<(Rule, u64)> =
        gathered.report.left_out.iter().map(|(&rule, count)| (rule, count.files)).collect();
    let expected = [
        (Rule::Hidden, 1),
        (Rule::Lock, 1),
        (Rule::TestData, 1),
        (Rule::Licence, 1),
        (Rule::TooSmall, 1),
        (Rule::TooLarge, 1),
        (Rule::Duplicate, 1),
    ];
    assert_eq!(counts, expected);
    let prose = gathered.documents.iter().find(|d| d.kind == Kind::DocProse).unwrap();
    assert!(prose.text.starts_with("This module says") && prose.text.ends_with("question asked here."));
    assert!(!prose.text.contains("fn "));
    assert_eq!(gathered.report.files, 9, "what a hidden folder holds is not counted");
    assert_eq!(gathered.report.kept[&Kind::Prose].files, 2);
    serde_json::to_string(&gathered.report).unwrap();
}

fn many(fs: &FaultFs) {
    for package in 0..40 {
        for file in 0..10 {
            let text = GUIDE.replace("guide", &format!("guide {package} {file}"));
            write(fs, &[(&format!("p{package:02}/{file}.md"), &text)]);
        }
    }
}

#[test]
fn a_small_sample_is_spread_over_the_packages_and_decided_by_the_seed() {
    let fs = FaultFs::new();
    many(&fs);
    let of = |seed| {
        gather_all(&fs, &GatherOptions { max_bytes: 100 * GUIDE.len() as u64, package_share: 1.0, seed })
    };
    let one = of(1);
    assert_eq!(one, of(1));
    assert_ne!(one.documents, of(2).documents);
    assert!((95..=100).contains(&one.documents.len()), "{}", one.documents.len());
    let families: HashSet<&str> = one.documents.iter().map(|d| d.family.as_str()).collect();
    assert!(families.len() > 25, "{} of 40 packages", families.len());
    assert_eq!(one.report.left_out[&Rule::NotNeeded].files, 400 - one.documents.len() as u64);
}

#[test]
fn no_package_exceeds_its_share() {
    let fs = FaultFs::new();
    many(&fs);
    let max_bytes = 40 * GUIDE.len() as u64;
    let gathered = gather_all(&fs, &GatherOptions { max_bytes, package_share: 0.06, seed: 3 });
    let mut per_package: BTreeMap<&str, u64> = BTreeMap::new();
    for document in &gathered.documents {
        *per_package.entry(&document.family).or_default() += document.text.len() as u64;
    }
    assert!(per_package.values().all(|&bytes| bytes as f64 <= 0.06 * max_bytes as f64));
    assert!(gathered.report.left_out[&Rule::PackageShare].files > 0);
}

#[test]
fn a_folder_without_text_is_an_error() {
    let fs = FaultFs::new();
    write(&fs, &[("a/x.png", "no text")]);
    let packages = folder_packages(&fs, Path::new("/text")).unwrap();
    let error = gather(&fs, &packages, &GatherOptions::default()).unwrap_err();
    assert!(matches!(error, Error::TooLittle(_)), "{error}");
    assert!(matches!(folder_packages(&fs, Path::new("/none")), Err(Error::Io { .. })));
}
