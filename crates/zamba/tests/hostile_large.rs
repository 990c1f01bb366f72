//! Files of 100 MB that are built to cost time or memory: a verdict within a second each, and never more
//! than 256 MiB of memory for the whole process. The second is one of this thread's processor time, so
//! that a busy machine does not fail the test.
//!
//! One test, alone in its binary, because the peak of memory belongs to the process.

mod files;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use files::{plain, save, small_config, unpack};
use zamba::ZambaConfig;
use zamba::checkpoint::safetensors::MAX_HEADER;
use zamba::checkpoint::{Checkpoint, LoadError, LoadOptions};

const SIZE: u64 = 100_000_000;
const DEADLINE: Duration = Duration::from_secs(1);
const MEMORY_KIB: u64 = 256 << 10;

type Expect = fn(&LoadError) -> bool;

/// The most memory this process ever had, from the kernel's own account.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Time this thread has spent on a processor.
fn processor_time() -> Duration {
    let account = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(account.split(' ').next().unwrap().parse().unwrap())
}

/// A sparse file of [`SIZE`] bytes that starts with `head` and, if given, a header length before it.
fn sparse(path: &Path, length: Option<u64>, head: &[u8]) {
    let file = File::create(path).unwrap();
    let at = length.map_or(0, |length| {
        file.write_all_at(&length.to_le_bytes(), 0).unwrap();
        8
    });
    file.write_all_at(head, at).unwrap();
    file.set_len(SIZE).unwrap();
}

/// A header of the longest accepted length made of `start` and then `unit` over and over.
fn flood(start: &str, unit: &str) -> Vec<u8> {
    let units = (MAX_HEADER as usize - start.len()) / unit.len() - 1;
    closed([start, &unit.repeat(units)].concat())
}

/// As [`flood`], with units that count up.
fn count_up(start: &str, unit: &dyn Fn(usize) -> String) -> Vec<u8> {
    let mut text = start.to_owned();
    text.reserve(MAX_HEADER as usize);
    for i in 0.. {
        let next = unit(i);
        if text.len() + next.len() >= MAX_HEADER as usize {
            break;
        }
        text.push_str(&next);
    }
    closed(text)
}

fn closed(text: String) -> Vec<u8> {
    let mut text = text.into_bytes();
    text.resize(MAX_HEADER as usize - 1, b' ');
    text.push(b'}');
    text
}

/// Opens the folder and reads every tensor, as loading does.
fn load(dir: &Path) -> Result<(), LoadError> {
    let checkpoint = Checkpoint::open(dir, &LoadOptions::default())?;
    let mut part = vec![0.0; 1 << 20];
    for spec in checkpoint.specs() {
        for at in (0..spec.len()).step_by(part.len()) {
            let part = &mut part[..(1 << 20).min(spec.len() - at)];
            checkpoint.read_f32(&spec.name, at, part)?;
        }
    }
    Ok(())
}

fn verdict(what: &str, dir: &Path, expect: Expect) {
    let start = processor_time();
    let error = load(dir).expect_err(what);
    let spent = processor_time() - start;
    assert!(expect(&error), "{what}: {error:?}");
    assert!(spent < DEADLINE, "{what}: {spent:?}");
    assert!(peak_kib() < MEMORY_KIB, "{what}: {} KiB", peak_kib());
}

macro_rules! is {
    ($pattern:pat) => {
        |error: &LoadError| matches!(error, $pattern)
    };
}

/// Files that hold 100 MB where the header should be, or a header that is a bomb.
fn headers(dir: &Path) {
    let file = dir.join("model.safetensors");
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    sparse(&file, Some(SIZE - 8), b"{");
    verdict("a header of 100 MB", dir, is!(LoadError::HeaderLength { .. }));
    let entries = |name: &str| format!(",\"{name}\":{entry}");
    let table: [(&str, &str, &str, Expect); 9] = [
        ("brackets", "{\"a\":", "[", is!(LoadError::TooDeep { .. })),
        ("one name", "{\"", "n", is!(LoadError::Malformed { .. })),
        ("spaces", "{", " ", is!(LoadError::FileEnd { .. })),
        ("metadata", "{\"__metadata__\":{\"a\":\"", "b", is!(LoadError::Malformed { .. })),
        ("one shape", "{\"a\":{\"shape\":[1", ",1", is!(LoadError::Rank { .. })),
        ("escapes", "{\"a\":{\"dtype\":\"", "\\u0041", is!(LoadError::Malformed { .. })),
        ("digits", "{\"a\":{\"shape\":[1", "0", is!(LoadError::Malformed { .. })),
        ("fields", "{\"a\":{\"dtype\":\"F32\"", ",\"dtype\":\"F32\"", is!(LoadError::DuplicateKey { .. })),
        ("same name", &format!("{{\"a\":{entry}"), &entries("a"), is!(LoadError::TooManyTensors { .. })),
    ];
    for (what, start, unit, expect) in table {
        sparse(&file, Some(MAX_HEADER), &flood(start, unit));
        verdict(what, dir, expect);
    }
    let names = count_up(&format!("{{\"a\":{entry}"), &|i| entries(&i.to_string()));
    sparse(&file, Some(MAX_HEADER), &names);
    drop(names);
    verdict("half a million tensors", dir, is!(LoadError::TooManyTensors { .. }));
    let notes = count_up("{\"__metadata__\":{\"a\":\"\"", &|i| format!(",\"{i}\":\"\""));
    sparse(&file, Some(MAX_HEADER), &notes);
    drop(notes);
    verdict("three million notes", dir, is!(LoadError::TooManyValues { .. }));
    fs::remove_file(file).unwrap();
}

/// The JSON files of the folder, 100 MB each or as long as is read and full of values.
fn json_files(dir: &Path) {
    let index = dir.join("model.safetensors.index.json");
    sparse(&index, None, b"{\"weight_map\":{");
    verdict("an index of 100 MB", dir, is!(LoadError::FileTooLarge { .. }));
    fs::write(&index, flood("{\"weight_map\":{\"a\":\"b.safetensors\"", ",\"a\":\"\"")).unwrap();
    verdict("an index of entries", dir, is!(LoadError::TooManyValues { .. }));
    fs::write(&index, flood("{\"metadata\":", "[")).unwrap();
    verdict("an index of brackets", dir, is!(LoadError::TooDeep { .. }));
    fs::remove_file(index).unwrap();

    save(&dir.join("m"), &small_config(), &plain());
    let (dir, config) = (&dir.join("m"), dir.join("m").join("config.json"));
    let good = fs::read(&config).unwrap();
    sparse(&config, None, b"{\"model_type\":\"zamba\",");
    verdict("a config of 100 MB", dir, is!(LoadError::FileTooLarge { .. }));
    fs::write(&config, &flood("{\"layers_block_type\":[\"m\"", ",\"m\"")[..4 << 20]).unwrap();
    verdict("a config of layers", dir, is!(LoadError::Config(_)));
    fs::write(&config, good).unwrap();
    sparse(&dir.join("MANIFEST.json"), None, b"{");
    verdict("a manifest of 100 MB", dir, is!(LoadError::FileTooLarge { .. }));
}

/// A file that is right in form: 100 MB of weights, the last of which is not a number; a stack as deep
/// as is allowed, for weights that are not there; a copy that differs in its last bit.
fn contents(dir: &Path) {
    let model = dir.join("w");
    let config = ZambaConfig { vocab_size: 6_250_000, ..small_config() };
    save(&model, &small_config(), &plain());
    fs::write(model.join("config.json"), config.to_json()).unwrap();
    let file = model.join("model.safetensors");
    let mut tensors = unpack(&file);
    let place = tensors.iter().position(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
    let embedding = tensors.remove(place);
    let bytes = config.vocab_size * config.hidden_size * 4;
    assert!(bytes as u64 >= SIZE);
    let header = |copies: &[&str]| {
        let (mut text, mut end) = (String::from("{"), 0);
        for (name, dtype, shape, data) in &tensors {
            text += &format!(
                "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{end},{}]}},",
                end + data.len()
            );
            end += data.len();
        }
        let mut entries = Vec::new();
        for name in copies {
            entries.push(format!(
                "\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{},4],\"data_offsets\":[{end},{}]}}",
                config.vocab_size,
                end + bytes
            ));
            end += bytes;
        }
        (text + &entries.join(",") + "}", end as u64)
    };
    for copies in [&[embedding.0.as_str()][..], &[embedding.0.as_str(), "lm_head.weight"]] {
        let (header, end) = header(copies);
        let out = File::create(&file).unwrap();
        out.write_all_at(&(header.len() as u64).to_le_bytes(), 0).unwrap();
        out.write_all_at(header.as_bytes(), 8).unwrap();
        let size = 8 + header.len() as u64 + end;
        out.set_len(size).unwrap();
        out.write_all_at(&f32::NAN.to_le_bytes(), size - 4).unwrap();
        match copies.len() {
            1 => verdict("the last weight", &model, is!(LoadError::NotFinite { .. })),
            _ => verdict("the last bit of a copy", &model, is!(LoadError::TiedDiffer { .. })),
        }
    }
    let mut deep = ZambaConfig::preset("tiny").unwrap();
    deep.num_hidden_layers = 4096;
    deep.layers_block_type = vec![zamba::config::LayerKind::Hybrid; 4096];
    fs::write(model.join("config.json"), deep.to_json()).unwrap();
    verdict("4096 layers", &model, is!(LoadError::Missing { .. }));
}

#[test]
fn hostile_files_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), small_config().to_json()).unwrap();
    headers(dir.path());
    json_files(dir.path());
    contents(dir.path());
}
