//! Each rule of the loader is broken once, and the error must be the one of that rule.
//!
//! The marks L1 to L33 number the rules; the list stands in the documentation of the tests below.

mod files;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use files::{pack, plain, raw, save, small_config, unpack};
use serde_json::{Value, json};
use zamba::checkpoint::safetensors::{MAX_HEADER, parse};
use zamba::checkpoint::{Checkpoint, FileDtype, LoadError, LoadOptions, SaveOptions, Verify};
use zamba::config::ConfigError;

type Expect = fn(&LoadError) -> bool;
type Refusal = fn(&ConfigError) -> bool;

macro_rules! is {
    ($pattern:pat) => {
        |error: &LoadError| matches!(error, $pattern)
    };
}

fn open(dir: &Path) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(dir, &LoadOptions::default())
}

/// A header, and the bytes of data that follow it.
struct Case(&'static str, Vec<u8>, u64, Expect);

fn case(rule: &'static str, header: impl AsRef<[u8]>, data: u64, expect: Expect) -> Case {
    Case(rule, header.as_ref().to_vec(), data, expect)
}

/// One tensor `a` of two F32 numbers with these fields.
fn one(fields: &str) -> String {
    format!("{{\"a\":{{{fields}}}}}")
}

#[test]
fn a_good_header_is_read() {
    let text = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},
        "a":{"shape":[3,1],"data_offsets":[0,6],"dtype":"BF16"}}  "#;
    let header = parse("f", text.as_bytes(), 8 + text.len() as u64 + 14).unwrap();
    let names: Vec<&str> = header.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(header.entries[1].end - header.entries[0].begin, 14);
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(parse("f", b"{}", 10).unwrap().entries, []);
}

/// L3 to L13: what a header may not be.
#[test]
fn headers_that_break_a_rule() {
    let good = r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#;
    let many: String = (0..=100_000).map(|i| format!("\"{i}\":{{{good}}},")).collect();
    let deep = format!("{{\"a\":{}", "[".repeat(50_000));
    let metadata: String = (0..=10_000).map(|i| format!("\"{i}\":\"\",")).collect();
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{first}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    let table = [
        case("L3 space first", format!(" {}", one(good)), 8, is!(LoadError::HeaderStart { .. })),
        case("L3 list", "[]", 0, is!(LoadError::HeaderStart { .. })),
        case("L3 tab after", format!("{}\t", one(good)), 8, is!(LoadError::HeaderPadding { .. })),
        case("L3 zero after", format!("{}\0", one(good)), 8, is!(LoadError::HeaderPadding { .. })),
        case("L3 second object", format!("{}{{}}", one(good)), 8, is!(LoadError::Malformed { .. })),
        case("L4 no UTF-8", b"{\"\xff\":1}", 0, is!(LoadError::Encoding { .. })),
        case("L4 overlong", b"{\"\xc0\xaf\":1}", 0, is!(LoadError::Encoding { .. })),
        case("L4 byte order mark", b"\xef\xbb\xbf{}", 0, is!(LoadError::HeaderStart { .. })),
        case("L4 lone surrogate", r#"{"\ud800":{}}"#, 0, is!(LoadError::Malformed { .. })),
        case("L5 depth", deep + "}", 0, is!(LoadError::TooDeep { .. })),
        case(
            "L6 tensor twice",
            format!("{{\"a\":{{{good}}},\"a\":{{{good}}}}}"),
            8,
            is!(LoadError::DuplicateKey { .. }),
        ),
        case(
            "L6 escaped twin",
            format!("{{\"a\":{{{good}}},\"\\u0061\":{{{good}}}}}"),
            8,
            is!(LoadError::DuplicateKey { .. }),
        ),
        case(
            "L6 field twice",
            one(&format!("{good},\"dtype\":\"F32\"")),
            8,
            is!(LoadError::DuplicateKey { .. }),
        ),
        case(
            "L6 metadata twice",
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            0,
            is!(LoadError::DuplicateKey { .. }),
        ),
        case(
            "L6 metadata key twice",
            r#"{"__metadata__":{"a":"","a":""}}"#,
            0,
            is!(LoadError::DuplicateKey { .. }),
        ),
        case(
            "L7 unknown field",
            one(&format!("{good},\"stride\":[1]")),
            8,
            is!(LoadError::UnknownField { .. }),
        ),
        case(
            "L7 no dtype",
            one(r#""shape":[2],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::MissingField { field: "dtype", .. }),
        ),
        case(
            "L7 no shape",
            one(r#""dtype":"F32","data_offsets":[0,8]"#),
            8,
            is!(LoadError::MissingField { field: "shape", .. }),
        ),
        case(
            "L7 no offsets",
            one(r#""dtype":"F32","shape":[2]"#),
            8,
            is!(LoadError::MissingField { field: "data_offsets", .. }),
        ),
        case("L7 metadata number", r#"{"__metadata__":{"a":1}}"#, 0, is!(LoadError::Malformed { .. })),
        case(
            "L7 metadata flood",
            format!("{{\"__metadata__\":{{{metadata}\"x\":\"\"}}}}"),
            0,
            is!(LoadError::TooManyValues { .. }),
        ),
        case(
            "L8 fraction",
            one(r#""dtype":"F32","shape":[2.0],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::BadNumber { .. }),
        ),
        case(
            "L8 exponent",
            one(r#""dtype":"F32","shape":[2e0],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::BadNumber { .. }),
        ),
        case(
            "L8 sign",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[-8,0]"#),
            8,
            is!(LoadError::BadNumber { .. }),
        ),
        case(
            "L8 minus zero",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[-0,8]"#),
            8,
            is!(LoadError::BadNumber { .. }),
        ),
        case(
            "L8 2^64",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]"#),
            8,
            is!(LoadError::BadNumber { .. }),
        ),
        case(
            "L8 string",
            one(r#""dtype":"F32","shape":["2"],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::Malformed { .. }),
        ),
        case(
            "L8 leading zero",
            one(r#""dtype":"F32","shape":[02],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::Malformed { .. }),
        ),
        case(
            "L8 three offsets",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8,8]"#),
            8,
            is!(LoadError::Malformed { .. }),
        ),
        case("L9 count", format!("{{{many}\"x\":{{}}}}"), 8, is!(LoadError::TooManyTensors { .. })),
        case("L9 empty name", format!("{{\"\":{{{good}}}}}"), 8, is!(LoadError::TensorName { .. })),
        case("L9 NUL in name", format!("{{\"a\\u0000\":{{{good}}}}}"), 8, is!(LoadError::TensorName { .. })),
        case(
            "L9 escape in name",
            format!("{{\"\\u001b[31m\":{{{good}}}}}"),
            8,
            is!(LoadError::TensorName { .. }),
        ),
        case(
            "L9 long name",
            format!("{{\"{}\":{{{good}}}}}", "n".repeat(513)),
            8,
            is!(LoadError::TensorName { .. }),
        ),
        case(
            "L10 rank",
            one(&format!(r#""dtype":"F32","shape":[{}2],"data_offsets":[0,8]"#, "1,".repeat(8))),
            8,
            is!(LoadError::Rank { .. }),
        ),
        case(
            "L10 zero",
            one(r#""dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]"#),
            0,
            is!(LoadError::ZeroDimension { .. }),
        ),
        case(
            "L11 product",
            one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::SizeOverflow { .. }),
        ),
        case(
            "L11 signed",
            one(r#""dtype":"F16","shape":[4611686018427387904],"data_offsets":[0,9223372036854775808]"#),
            8,
            is!(LoadError::SizeOverflow { .. }),
        ),
        case(
            "L11 offset",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[18446744073709551607,18446744073709551615]"#),
            8,
            is!(LoadError::SizeOverflow { .. }),
        ),
        case(
            "L12 shape and bytes",
            one(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::ByteCount { needed: 12, found: 8, .. }),
        ),
        case(
            "L12 backwards",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#),
            8,
            is!(LoadError::Overlap { .. }),
        ),
        case("L12 overlap", two("[0,8]", "[4,12]"), 12, is!(LoadError::Overlap { .. })),
        case("L12 same bytes", two("[0,8]", "[0,8]"), 8, is!(LoadError::Overlap { .. })),
        case("L12 hole", two("[0,8]", "[9,17]"), 17, is!(LoadError::Hole { bytes: 1, .. })),
        case(
            "L12 hole at the start",
            one(r#""dtype":"F32","shape":[2],"data_offsets":[1,9]"#),
            9,
            is!(LoadError::Hole { .. }),
        ),
        case("L12 cut off", one(good), 7, is!(LoadError::FileEnd { .. })),
        case("L12 appended", one(good), 9, is!(LoadError::FileEnd { .. })),
        case(
            "L13 unknown type",
            one(r#""dtype":"F33","shape":[2],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::UnknownDtype { .. }),
        ),
        case(
            "L13 type in lower case",
            one(r#""dtype":"f32","shape":[2],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::UnknownDtype { .. }),
        ),
        case(
            "L13 type of no weight",
            one(r#""dtype":"I64","shape":[1],"data_offsets":[0,8]"#),
            8,
            is!(LoadError::UnsupportedDtype { .. }),
        ),
    ];
    for Case(rule, header, data, expect) in table {
        let size = 8 + header.len() as u64 + data;
        let error = parse("model.safetensors", &header, size).expect_err(rule);
        assert!(expect(&error), "{rule}: {error:?}");
        assert!(error.to_string().starts_with("model.safetensors"), "{rule}: {error}");
        assert!(!error.to_string().contains(['\n', '\x1b', '\0']), "{rule}: {error:?}");
    }
}

/// L1, L2: the frame around the header.
#[test]
fn files_that_are_no_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    save(&folder, &small_config(), &plain());
    let file = folder.join("model.safetensors");
    let length = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let table: [(&str, Vec<u8>, Expect); 7] = [
        ("L1 empty", vec![], is!(LoadError::TooShort { size: 0, .. })),
        ("L1 nine bytes", vec![1, 0, 0, 0, 0, 0, 0, 0, b'{'], is!(LoadError::TooShort { size: 9, .. })),
        ("L2 zero", length(0), is!(LoadError::HeaderLength { stated: 0, .. })),
        ("L2 beyond the file", length(3), is!(LoadError::HeaderLength { stated: 3, limit: 2, .. })),
        ("L2 huge", length(u64::MAX), is!(LoadError::HeaderLength { .. })),
        ("L2 pickle", b"PK\x03\x04 a zip archive".to_vec(), is!(LoadError::HeaderLength { .. })),
        ("L2 no tensors", length(2), is!(LoadError::Missing { .. })),
    ];
    for (rule, bytes, expect) in table {
        fs::write(&file, bytes).unwrap();
        let error = open(&folder).expect_err(rule);
        assert!(expect(&error), "{rule}: {error:?}");
    }
    let out = fs::File::create(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&out, &(MAX_HEADER + 1).to_le_bytes(), 0).unwrap();
    out.set_len(MAX_HEADER + 100).unwrap();
    let error = open(&folder).unwrap_err();
    assert!(matches!(error, LoadError::HeaderLength { limit: MAX_HEADER, .. }), "L2 cap: {error:?}");
}

/// L14: numbers at odd offsets are copied, never cast in place.
#[test]
fn unaligned_tensors_are_read_right() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let config = small_config();
    save(&folder, &config, &plain());
    let file = folder.join("model.safetensors");
    let mut tensors = unpack(&file);
    let name = "model.final_layernorm.weight";
    let at = tensors.iter().position(|tensor| tensor.0 == name).unwrap();
    let norm = tensors.remove(at);
    let mut header = b"{".to_vec();
    let mut data = norm.3.clone();
    // A header of odd length puts every number of the file at an odd address.
    let entry = |name: &str, dtype: &str, shape: &[usize], begin: usize, end: usize| {
        format!("{}:{}", json!(name), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}))
    };
    header.extend(entry(&norm.0, &norm.1, &norm.2, 0, data.len()).bytes());
    for (name, dtype, shape, bytes) in &tensors {
        let begin = data.len();
        data.extend(bytes);
        header.extend(format!(",{}", entry(name, dtype, shape, begin, data.len())).bytes());
    }
    header.push(b'}');
    if header.len().is_multiple_of(2) {
        header.push(b' ');
    }
    fs::write(&file, raw(&header, &data)).unwrap();
    let checkpoint = open(&folder).unwrap();
    for spec in checkpoint.specs() {
        let mut found = vec![0.0; spec.len()];
        checkpoint.read_f32(&spec.name, 0, &mut found).unwrap();
        assert_eq!(found, files::values(&config, spec), "{}", spec.name);
    }
}

/// A folder in shards, and a way to change its index.
fn sharded(dir: &Path) -> (std::path::PathBuf, Value) {
    let folder = dir.join("m");
    save(&folder, &small_config(), &SaveOptions { max_shard_bytes: 2000, ..plain() });
    let index = fs::read_to_string(folder.join("model.safetensors.index.json")).unwrap();
    (folder, serde_json::from_str(&index).unwrap())
}

/// L15 to L18: what an index may not say.
#[test]
fn indexes_that_lie_or_lead_astray() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, good) = sharded(dir.path());
    open(&folder).unwrap();
    let shards: Vec<&str> =
        good["weight_map"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    let (first, last) = (shards[0], shards[shards.len() - 1]);
    assert_ne!(first, last);
    let rename = |to: &str| {
        let mut index = good.clone();
        index["weight_map"]["model.embed_tokens.weight"] = json!(to);
        index.to_string()
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut index = good.clone();
        change(&mut index);
        index.to_string()
    };
    let many: serde_json::Map<String, Value> =
        (0..=1000).map(|i| (format!("t{i}"), json!(format!("{i}.safetensors")))).collect();
    let flood = format!("{{\"weight_map\":{{{}\"x\":\"y.safetensors\"}}}}", "\"a\":\"b\",".repeat(200_001));
    let table: Vec<(&str, String, Expect)> = vec![
        ("L15 parent", rename("../m/x.safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 absolute", rename("/etc/x.safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 folder", rename("a/x.safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 backslash", rename("..\\x.safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 drive", rename("C:x.safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 ending", rename("config.json"), is!(LoadError::ShardName { .. })),
        ("L15 only an ending", rename(".safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 dots", rename("..safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 NUL", rename("a\0.safetensors"), is!(LoadError::ShardName { .. })),
        ("L15 absent", rename("absent.safetensors"), is!(LoadError::Io { .. })),
        ("L16 count", json!({ "weight_map": many }).to_string(), is!(LoadError::TooManyShards { .. })),
        ("L16 flood", flood, is!(LoadError::TooManyValues { .. })),
        ("L17 other shard", rename(last), is!(LoadError::IndexDisagrees { .. })),
        (
            "L17 not in index",
            with(&|i| drop(i["weight_map"].as_object_mut().unwrap().remove("model.embed_tokens.weight"))),
            is!(LoadError::IndexDisagrees { .. }),
        ),
        (
            "L17 not in shards",
            with(&|i| i["weight_map"]["x"] = json!(first)),
            is!(LoadError::IndexDisagrees { .. }),
        ),
        (
            "L18 total",
            with(&|i| i["metadata"]["total_size"] = json!(1)),
            is!(LoadError::TotalSize { stated: 1, .. }),
        ),
        (
            "L18 fraction",
            with(&|i| i["metadata"]["total_size"] = json!(1.5)),
            is!(LoadError::BadNumber { .. }),
        ),
        (
            "L6 twice",
            good.to_string().replacen("{", "{\"weight_map\":{},", 1),
            is!(LoadError::DuplicateKey { .. }),
        ),
        ("L7 unknown", with(&|i| i["extra"] = json!(1)), is!(LoadError::UnknownField { .. })),
        ("L5 deep", format!("{{\"weight_map\":{}", "[".repeat(10_000)), is!(LoadError::TooDeep { .. })),
        ("no map", "{}".into(), is!(LoadError::Malformed { .. })),
        ("a list", "[]".into(), is!(LoadError::Malformed { .. })),
        (
            "shard no string",
            with(&|i| i["weight_map"]["model.embed_tokens.weight"] = json!(1)),
            is!(LoadError::Malformed { .. }),
        ),
    ];
    for (rule, index, expect) in table {
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        let error = open(&folder).expect_err(rule);
        assert!(expect(&error), "{rule}: {error:?}");
    }
}

/// L15, L17: shards that are no files, lead outside, or repeat a tensor.
#[test]
fn shards_that_are_not_what_they_seem() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, index) = sharded(dir.path());
    let name = index["weight_map"]["model.embed_tokens.weight"].as_str().unwrap().to_owned();
    let shard = folder.join(&name);
    let outside = dir.path().join("elsewhere.safetensors");
    fs::rename(&shard, &outside).unwrap();

    symlink(&outside, &shard).unwrap();
    assert!(matches!(open(&folder), Err(LoadError::Outside { .. })), "L15 link outside");
    fs::remove_file(&shard).unwrap();
    fs::create_dir(&shard).unwrap();
    assert!(matches!(open(&folder), Err(LoadError::NotAFile { .. })), "L15 folder");
    fs::remove_dir(&shard).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&shard).status().unwrap();
    assert!(made.success());
    assert!(matches!(open(&folder), Err(LoadError::NotAFile { .. })), "L15 pipe");
    fs::remove_file(&shard).unwrap();
    symlink("/dev/zero", &shard).unwrap();
    assert!(matches!(open(&folder), Err(LoadError::Outside { .. })), "L15 device");
    fs::remove_file(&shard).unwrap();

    fs::rename(&outside, &shard).unwrap();
    open(&folder).unwrap();
    let other = index["weight_map"]["model.final_layernorm.weight"].as_str().unwrap();
    let mut tensors = unpack(&folder.join(other));
    tensors.push(unpack(&shard).swap_remove(0));
    pack(&folder.join(other), &tensors);
    assert!(matches!(open(&folder), Err(LoadError::TensorTwice { .. })), "L17 in two shards");
}

/// L15: the Hugging Face cache is made of links, which must work, but not to its other repositories.
#[test]
fn links_of_the_hub_cache_are_followed_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("models--owner--name");
    let snapshot = repository.join("snapshots").join("abc");
    let blobs = repository.join("blobs");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    let real = dir.path().join("m");
    save(&real, &small_config(), &plain());
    for (name, blob) in [("config.json", "11"), ("model.safetensors", "22")] {
        fs::copy(real.join(name), blobs.join(blob)).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    open(&snapshot).unwrap();
    let other = dir.path().join("models--other--name").join("blobs");
    fs::create_dir_all(&other).unwrap();
    fs::copy(blobs.join("22"), other.join("22")).unwrap();
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    symlink("../../../models--other--name/blobs/22", snapshot.join("model.safetensors")).unwrap();
    assert!(matches!(open(&snapshot), Err(LoadError::Outside { .. })));
}

/// L19, L20, L25: tensors that do not belong to the model, have other shapes, or hold no numbers.
#[test]
fn tensors_that_do_not_fit_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    save(&folder, &small_config(), &plain());
    let file = folder.join("model.safetensors");
    let good = unpack(&file);

    let mut tensors = good.clone();
    let lost = tensors.remove(3);
    pack(&file, &tensors);
    match open(&folder) {
        Err(LoadError::Missing { tensor, count: 1 }) => assert_eq!(tensor, lost.0, "L19 missing"),
        other => panic!("L19 missing: {other:?}"),
    }
    let mut tensors = good.clone();
    tensors.push(("model.layers.9.mamba.D".into(), "F32".into(), vec![1], vec![0; 4]));
    pack(&file, &tensors);
    assert!(matches!(open(&folder), Err(LoadError::Extra { count: 1, .. })), "L19 extra");

    let mut tensors = good.clone();
    tensors[0].2.reverse();
    pack(&file, &tensors);
    assert!(matches!(open(&folder), Err(LoadError::Shape { .. })), "L20 transposed");

    for (rule, value) in [("L25 NaN", f32::NAN), ("L25 infinity", f32::NEG_INFINITY)] {
        let mut tensors = good.clone();
        tensors[0].3[4..8].copy_from_slice(&value.to_le_bytes());
        pack(&file, &tensors);
        let checkpoint = open(&folder).unwrap();
        let mut found = [0.0; 4];
        match checkpoint.read_f32(&tensors[0].0, 0, &mut found) {
            Err(LoadError::NotFinite { tensor, count: 1, at: 1 }) => assert_eq!(tensor, tensors[0].0),
            other => panic!("{rule}: {other:?}"),
        }
        checkpoint.read_f32(&tensors[0].0, 2, &mut found).unwrap();
        let options = LoadOptions { allow_nonfinite: true, ..LoadOptions::default() };
        Checkpoint::open(&folder, &options).unwrap().read_f32(&tensors[0].0, 0, &mut found).unwrap();
        assert!(!found[1].is_finite(), "{rule}");
    }
    for (part, value) in [("mamba.A_log", 81.0f32), ("mamba.dt_proj_bias", -2000.0)] {
        let mut tensors = good.clone();
        let tensor = tensors.iter_mut().find(|tensor| tensor.0.ends_with(part)).unwrap();
        tensor.3[..4].copy_from_slice(&value.to_le_bytes());
        let name = tensor.0.clone();
        pack(&file, &tensors);
        let error = open(&folder).unwrap().read_f32(&name, 0, &mut [0.0]).unwrap_err();
        assert!(matches!(error, LoadError::Implausible { at: 0, .. }), "L25 {part}: {error:?}");
    }
}

/// L21 to L24, L26: the configuration is refused before anything is sized by it. Its own rules have
/// their own tests; here each kind is seen to arrive through the folder.
#[test]
fn configs_are_refused_before_weights_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    save(&folder, &small_config(), &plain());
    let good: Value = serde_json::from_str(&small_config().to_json()).unwrap();
    let table: [(&str, &str, Value, Refusal); 7] = [
        ("L21", "hidden_size", json!(1u64 << 40), |e| matches!(e, ConfigError::OutOfRange { .. })),
        ("L21", "num_hidden_layers", json!(0), |e| matches!(e, ConfigError::OutOfRange { .. })),
        ("L22", "layers_block_type", json!(["mamba", "attention"]), |e| {
            matches!(e, ConfigError::Inconsistent { .. })
        }),
        ("L23", "eos_token_id", json!(6), |e| matches!(e, ConfigError::Inconsistent { .. })),
        ("L24", "rms_norm_eps", json!(-1.0), |e| matches!(e, ConfigError::OutOfRange { .. })),
        ("L26", "auto_map", json!({"AutoModel": "x.Y"}), |e| matches!(e, ConfigError::RemoteCode { .. })),
        ("L26", "quantization_config", json!({"bits": 4}), |e| matches!(e, ConfigError::Quantised { .. })),
    ];
    for (rule, field, value, expect) in table {
        let mut config = good.clone();
        config[field] = value;
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        match open(&folder) {
            Err(LoadError::Config(error)) => {
                assert!(expect(&error) && error.to_string().contains(field), "{rule}: {error:?}");
            }
            other => panic!("{rule} {field}: {other:?}"),
        }
    }
    fs::write(folder.join("config.json"), good.to_string()).unwrap();
    let limit = LoadOptions { max_bytes: Some(100), ..LoadOptions::default() };
    assert!(matches!(Checkpoint::open(&folder, &limit), Err(LoadError::MemoryLimit { limit: 100, .. })));
    fs::write(folder.join("config.json"), b"\xff{}").unwrap();
    assert!(matches!(open(&folder), Err(LoadError::Encoding { .. })));
}

/// L31, L32: a file that is cut, grown or replaced while open gives an error, and nothing else happens.
#[test]
fn files_that_change_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    save(&folder, &small_config(), &plain());
    let file = folder.join("model.safetensors");
    let name = "model.embed_tokens.weight";
    let mut out = [0.0; 24];

    let checkpoint = open(&folder).unwrap();
    checkpoint.read_f32(name, 0, &mut out).unwrap();
    let bytes = fs::read(&file).unwrap();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100).unwrap();
    assert!(matches!(checkpoint.read_f32(name, 0, &mut out), Err(LoadError::Changed { .. })), "L32 cut");
    assert!(matches!(checkpoint.read_raw(name, 0, &mut [0; 96]), Err(LoadError::Changed { .. })), "L32 cut");
    assert!(matches!(open(&folder), Err(LoadError::HeaderLength { .. } | LoadError::FileEnd { .. })));

    fs::write(&file, &bytes).unwrap();
    let checkpoint = open(&folder).unwrap();
    let longer = fs::OpenOptions::new().append(true).open(&file).unwrap();
    std::io::Write::write_all(&mut &longer, b"more").unwrap();
    assert!(matches!(checkpoint.read_f32(name, 0, &mut out), Err(LoadError::Changed { .. })), "L31 grown");

    // Renaming another file over the name does not touch the open one.
    fs::write(&file, &bytes).unwrap();
    let checkpoint = open(&folder).unwrap();
    fs::write(dir.path().join("other"), b"other").unwrap();
    fs::rename(dir.path().join("other"), &file).unwrap();
    checkpoint.read_f32(name, 0, &mut out).unwrap();
    assert_eq!(out.to_vec(), files::values(&small_config(), &checkpoint.specs()[0]));
}

/// L33: a manifest is checked before anything is used, and can be wrong itself.
#[test]
fn manifests_that_do_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let options =
        SaveOptions { manifest: true, files: vec![("notes.txt".into(), b"hi".to_vec())], ..plain() };
    save(&folder, &small_config(), &options);
    let unchecked = LoadOptions { manifest: Verify::Nothing, ..LoadOptions::default() };
    open(&folder).unwrap();

    let file = folder.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&file, &flipped).unwrap();
    assert!(matches!(open(&folder), Err(LoadError::ManifestMismatch { what: "sha256", .. })));
    Checkpoint::open(&folder, &unchecked).unwrap();
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    assert!(matches!(open(&folder), Err(LoadError::ManifestMismatch { what: "size", .. })));
    fs::write(&file, &good).unwrap();
    fs::write(folder.join("notes.txt"), b"ho").unwrap();
    assert!(matches!(open(&folder), Err(LoadError::ManifestMismatch { what: "sha256", .. })));
    fs::write(folder.join("notes.txt"), b"hi").unwrap();
    open(&folder).unwrap();

    let manifest = folder.join("MANIFEST.json");
    let listed: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let mut without = listed.clone();
    without["files"].as_object_mut().unwrap().remove("config.json");
    let mut outside = listed.clone();
    outside["files"]["../x"] = json!({"size": 1, "sha256": ""});
    let mut short = listed.clone();
    short["files"]["notes.txt"] = json!({"size": 2});
    let table: [(Value, Expect); 5] = [
        (without, is!(LoadError::ManifestMissing { .. })),
        (outside, is!(LoadError::Malformed { .. })),
        (short, is!(LoadError::Malformed { .. })),
        (json!({}), is!(LoadError::Malformed { .. })),
        (json!([1]), is!(LoadError::Malformed { .. })),
    ];
    for (value, expect) in table {
        fs::write(&manifest, value.to_string()).unwrap();
        let error = open(&folder).unwrap_err();
        assert!(expect(&error), "{value}: {error:?}");
    }
}

/// Folders that hold no model say what they are.
#[test]
fn folders_without_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    assert!(matches!(open(&path.join("absent")), Err(LoadError::Io { .. })));
    assert!(matches!(open(path), Err(LoadError::NoConfig { .. })));
    fs::write(path.join("config.json"), small_config().to_json()).unwrap();
    assert!(matches!(open(&path.join("config.json")), Err(LoadError::NotAFolder { .. })));
    assert!(matches!(open(path), Err(LoadError::NoWeights { hint: "", .. })));
    fs::write(path.join("pytorch_model.bin"), b"PK").unwrap();
    let message = open(path).unwrap_err().to_string();
    assert!(message.contains("never read"), "{message}");
}

/// Any flipped byte of a header is either refused or leaves a file that reads as one model.
#[test]
fn flipped_bytes_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    save(&folder, &small_config(), &SaveOptions { dtype: FileDtype::Bf16, ..plain() });
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = &bytes[8..8 + header_len];
    let mut refused = 0;
    for at in 0..header_len {
        for bit in 0..8 {
            let mut changed = header.to_vec();
            changed[at] ^= 1 << bit;
            match parse("f", &changed, bytes.len() as u64) {
                Err(_) => refused += 1,
                Ok(read) => {
                    let total: u64 = read.entries.iter().map(|entry| entry.end - entry.begin).sum();
                    assert_eq!(total, (bytes.len() - 8 - header_len) as u64);
                }
            }
        }
    }
    assert!(refused > header_len, "only {refused} refused");
}
