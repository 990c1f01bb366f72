//! Plain inputs of `zamba data tokenize`: text files and JSON lines.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::fs::{self, Fs, Stream};

/// A line longer than this is refused: it would have to be held in memory whole.
const MAX_LINE: u64 = 256 << 20;

/// The documents of `path`, one after the other: each line's field `text` of a file that ends in `.jsonl`, any other file
/// whole; of a folder, all its files, subfolders included, in sorted order. Names that start with a dot are passed over,
/// links are not followed.
///
/// # Errors
/// If the path does not exist or a folder cannot be listed. The iterator gives an error for a file or line that is not
/// text, and goes on behind it.
pub fn documents<'a>(fs: &'a dyn Fs, path: &Path) -> Result<impl Iterator<Item = Result<String>> + 'a> {
    let mut files = Vec::new();
    match fs.kind(path).map_err(Error::io(path, "look at"))? {
        fs::Kind::Dir => list(fs, path, &mut files)?,
        // A link that the user names himself is meant.
        fs::Kind::File | fs::Kind::Other => files.push(path.to_owned()),
    }
    Ok(files.into_iter().flat_map(move |file| -> Box<dyn Iterator<Item = Result<String>> + 'a> {
        if file.extension().is_some_and(|extension| extension == "jsonl") {
            match json_lines(fs, &file) {
                Ok(lines) => Box::new(lines),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        } else {
            Box::new(std::iter::once(whole(fs, &file)))
        }
    }))
}

fn list(fs: &dyn Fs, root: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs.list(&folder).map_err(Error::io(&folder, "list"))? {
            let path = folder.join(&entry.name);
            match entry.kind {
                _ if entry.name.to_string_lossy().starts_with('.') => {}
                fs::Kind::Dir => folders.push(path),
                fs::Kind::File => files.push(path),
                fs::Kind::Other => {}
            }
        }
    }
    files.sort();
    Ok(())
}

fn whole(fs: &dyn Fs, path: &Path) -> Result<String> {
    let bytes = fs.read(path).map_err(Error::io(path, "read"))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::Document {
            path: path.to_owned(),
            document: 0,
            what: format!("is not UTF-8 at byte {at}; convert it"),
        }
    })
}

/// The field `text` of each line of a JSON lines file. Empty lines are passed over; other fields are ignored.
///
/// # Errors
/// If the file cannot be opened.
pub fn json_lines(fs: &dyn Fs, path: &Path) -> Result<JsonLines> {
    let stream = fs.stream(path).map_err(Error::io(path, "open"))?;
    Ok(JsonLines {
        path: path.to_owned(),
        reader: BufReader::with_capacity(1 << 20, stream),
        line: 0,
        done: false,
    })
}

/// See [`json_lines`].
pub struct JsonLines {
    path: PathBuf,
    reader: BufReader<Stream>,
    line: u64,
    done: bool,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

impl Iterator for JsonLines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        while !self.done {
            bytes.clear();
            self.line += 1;
            let read = std::io::Read::take(&mut self.reader, MAX_LINE).read_until(b'\n', &mut bytes);
            match read {
                Err(error) => {
                    self.done = true;
                    return Some(Err(Error::io(&self.path, "read")(error)));
                }
                Ok(0) => self.done = true,
                Ok(read) if read as u64 == MAX_LINE && !bytes.ends_with(b"\n") => {
                    self.done = true;
                    return Some(Err(self.bad("is longer than 256 MiB; split it".into())));
                }
                Ok(_) if bytes.trim_ascii().is_empty() => {}
                Ok(_) => {
                    let parsed = serde_json::from_slice::<Line>(&bytes);
                    return Some(parsed.map(|line| line.text).map_err(|error| {
                        // Its own line number is always 1.
                        let what = error.to_string();
                        let what = what.split(" at line ").next().unwrap_or(&what);
                        self.bad(format!(
                            "{what} (column {}); each line must be an object with `text`",
                            error.column()
                        ))
                    }));
                }
            }
        }
        None
    }
}

impl JsonLines {
    fn bad(&self, what: String) -> Error {
        Error::Line { path: self.path.clone(), line: self.line, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FaultFs;

    #[test]
    fn files_and_lines_come_in_sorted_order() {
        let fs = FaultFs::new();
        fs.create_dirs(Path::new("/in/b")).unwrap();
        let lines = "{\"text\": \"one\\n\", \"id\": 7}\n\n  {\"id\": 8, \"text\": \"two\"}";
        for (path, text) in [("c.txt", "last"), ("b/x.jsonl", lines), ("a.md", "first"), (".hidden", "no")] {
            fs.write(&Path::new("/in").join(path), text.as_bytes()).unwrap();
        }
        let texts: Vec<String> =
            documents(&fs, Path::new("/in")).unwrap().map(|text| text.unwrap()).collect();
        assert_eq!(texts, ["first", "one\n", "two", "last"]);
        let texts: Vec<String> =
            documents(&fs, Path::new("/in/c.txt")).unwrap().map(|text| text.unwrap()).collect();
        assert_eq!(texts, ["last"]);
        assert!(documents(&fs, Path::new("/none")).is_err());
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_is_read() {
        let fs = FaultFs::new();
        let lines =
            b"{\"text\": \"good\"}\n{\"txt\": 1}\n{\"text\": \"\xff\"}\nnothing\n{\"text\": \"good\"}\n";
        fs.write(Path::new("/x.jsonl"), lines).unwrap();
        let results: Vec<Result<String>> = documents(&fs, Path::new("/x.jsonl")).unwrap().collect();
        let bad: Vec<u64> = results
            .iter()
            .filter_map(|result| match result {
                Err(Error::Line { line, .. }) => Some(*line),
                _ => None,
            })
            .collect();
        assert_eq!((results.len(), bad), (5, vec![2, 3, 4]));
        fs.write(Path::new("/x.txt"), b"ab\xff").unwrap();
        let error = documents(&fs, Path::new("/x.txt")).unwrap().next().unwrap().unwrap_err();
        assert!(error.to_string().contains("byte 2"), "{error}");
    }
}
