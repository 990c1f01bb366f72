//! Files that would make the `tokenizers` library panic, or contradict themselves: each is an error that names the fault.

use serde_json::{Value, json};
use zamba::tokenizer::{Tokenizer, TokenizerError};

/// A small tokenizer that loads.
fn good() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": null,
        "decoder": null,
        "post_processor": null,
        "model": {"type": "BPE", "unk_token": null, "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": [["a", "b"]]}
    })
}

fn load_text(text: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    Tokenizer::from_dir(dir.path())
}

fn load(file: &Value) -> Result<Tokenizer, TokenizerError> {
    load_text(file.to_string().as_bytes())
}

/// The good file with one place changed.
fn with(pointer: &str, value: Value) -> Value {
    let mut file = good();
    *file.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    file
}

#[track_caller]
fn assert_invalid(file: &Value, part: &str) {
    match load(file) {
        Err(error @ TokenizerError::Invalid { .. }) => {
            let message = error.to_string();
            assert!(message.contains(part) && message.contains("tokenizer.json"), "{message}");
            assert!(!message.contains('\n'));
        }
        other => panic!("expected a message with {part:?}, got {other:?}"),
    }
}

#[test]
fn the_unchanged_file_loads() {
    let tokenizer = load(&good()).unwrap();
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [2, 3]);
}

#[test]
fn merges_must_fit_the_vocabulary() {
    // Longer than every token: the library's buffer overflows.
    assert_invalid(&with("/model/merges", json!([["ab", "c"]])), "merges[0]");
    assert_invalid(&with("/model/merges", json!([["a", "b"], ["a", "missing-and-very-long"]])), "merges[1]");
    assert_invalid(&with("/model/merges", json!(["a b c"])), "merges[0]");
    assert_invalid(&with("/model/merges", json!(["ab"])), "merges[0]");
    assert_invalid(&with("/model/merges", json!([["", "ab"]])), "empty token");
    assert!(load(&with("/model/merges", json!(["#version: 0.2", "a b"]))).is_ok());
}

#[test]
fn later_pieces_must_have_the_prefix_that_is_cut_off() {
    // A shorter piece makes a length underflow; a longer one without the prefix is cut inside a character.
    for piece in ["b", "ééé"] {
        let mut file = good();
        file["model"]["continuing_subword_prefix"] = json!("####");
        file["model"]["vocab"] = json!({"a": 0, piece: 1, format!("a{piece}"): 2});
        file["model"]["merges"] = json!([["a", piece]]);
        assert_invalid(&file, "continuing_subword_prefix");
    }
    let mut file = good();
    file["model"]["continuing_subword_prefix"] = json!("##");
    file["model"]["vocab"] = json!({"a": 0, "##b": 1, "ab": 2});
    file["model"]["merges"] = json!([["a", "##b"]]);
    assert_eq!(load(&file).unwrap().encode("ab", false).unwrap(), [2]);
}

#[test]
fn tokens_and_ids_are_unique() {
    let text = good().to_string().replace(r#""c":3"#, r#""c":3,"a":4"#);
    let error = load_text(text.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("\"a\" twice"), "{error}");
    assert_invalid(&with("/model/vocab", json!({"a": 0, "b": 1, "ab": 1})), "id 1 to two tokens");
    assert_invalid(&with("/model/vocab", json!({})), "vocab is empty");
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    assert_invalid(&with("/added_tokens", json!([added(4, "<s>"), added(5, "<s>")])), "twice");
    assert_invalid(&with("/added_tokens", json!([added(4, "<s>"), added(4, "</s>")])), "id 4 to two tokens");
    // A gap in the vocabulary: the library gives the added token the count of tokens as id, which is taken.
    let mut file = with("/model/vocab", json!({"a": 0, "b": 1, "ab": 3}));
    file["added_tokens"] = json!([added(4, "<s>")]);
    assert_invalid(&file, "shares id 3");
    let tokenizer = load(&with("/added_tokens", json!([added(7, "c")]))).unwrap();
    assert_eq!(tokenizer.warnings().len(), 1);
    assert_eq!(tokenizer.encode("c", false).unwrap(), [3]);
}

#[test]
fn ids_stay_in_proportion_to_the_file() {
    assert_invalid(&with("/model/vocab", json!({"a": 0, "b": 1, "ab": u32::MAX})), "large gaps");
    assert_eq!(load(&with("/model/vocab", json!({"a": 0, "b": 1, "ab": 70}))).unwrap().max_id(), 70);
}

#[test]
fn parts_that_panic_when_used_are_refused() {
    let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1});
    assert_invalid(
        &with("/decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]})),
        "stop",
    );
    assert_invalid(&with("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})), "length 0");
    let mut deep = json!({"type": "Fuse"});
    for _ in 0..40 {
        deep = json!({"type": "Sequence", "decoders": [deep]});
    }
    assert!(load(&with("/decoder", deep)).is_ok_and(|t| t.decode(&[0], false).is_ok_and(|text| text == "a")));
    let many = vec![json!({"type": "Fuse"}); 300];
    assert_invalid(&with("/decoder", json!({"type": "Sequence", "decoders": many})), "more than 256 parts");
}

#[test]
fn the_post_processor_adds_known_tokens_and_few() {
    let template = |single: Value, id: u32| {
        json!({"type": "TemplateProcessing", "single": single, "pair": single,
               "special_tokens": {"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}}})
    };
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    assert_invalid(&with("/post_processor", template(json!([bos, text]), 4_000_000_000)), "4000000000");
    let fine = load(&with("/post_processor", template(json!([bos, text]), 3))).unwrap();
    assert_eq!(fine.encode("a", true).unwrap(), [3, 0]);
    let many = vec![bos; 500];
    assert_invalid(&with("/post_processor", template(json!(many), 3)), "adds 500");
}

#[test]
fn other_models_are_checked_too() {
    let unigram = |unk: u32, piece: &str| json!({"type": "Unigram", "unk_id": unk, "vocab": [["<unk>", 0.0], [piece, -1.0]]});
    assert!(load(&with("/model", unigram(0, "a"))).is_ok());
    assert_invalid(&with("/model", unigram(2, "a")), "unk_id 2");
    assert_invalid(&with("/model", unigram(0, "")), "empty token");
    assert_invalid(&with("/model", json!({"type": "BPE", "vocab": [["a", 0.0]], "merges": []})), "list");
    assert_invalid(&with("/model", json!({"type": "Other", "vocab": {"a": 0}})), "Other");
    assert_invalid(&with("/model/unk_token", json!("<nope>")), "<nope>");
    let words = json!({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"});
    assert_eq!(load(&with("/model", words)).unwrap().encode("zzz", false).unwrap(), [1]);
}

#[test]
fn what_is_not_json_or_not_utf8_is_an_error() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in [&b""[..], b"{", b"[]", b"{}", b"{\"model\": 3}", deep.as_bytes()] {
        assert!(matches!(load_text(text), Err(TokenizerError::Json { .. })));
    }
    assert!(matches!(load_text(b"\xff\xfe"), Err(TokenizerError::Read { .. })));
    let unknown = with("/decoder", json!({"type": "NoSuchDecoder"}));
    assert!(matches!(load(&unknown), Err(TokenizerError::Refused { .. })));
}

#[test]
fn a_file_beyond_the_limit_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("tokenizer.json")).unwrap();
    // Sparse, so nothing is written to disk.
    file.set_len(1 << 32).unwrap();
    assert!(matches!(Tokenizer::from_dir(dir.path()), Err(TokenizerError::TooLarge { .. })));
}

#[test]
fn the_small_files_are_checked() {
    for (name, text) in [
        ("tokenizer_config.json", "{\"bos_token\": 3}"),
        ("tokenizer_config.json", "{\"bos_token\": {}}"),
        ("tokenizer_config.json", "{\"legacy\": \"yes\"}"),
        ("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": \"<s>\"}}"),
        ("tokenizer_config.json", "{\"extra_special_tokens\": 3}"),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "not json"),
        ("generation_config.json", "{\"eos_token_id\": -1}"),
        ("generation_config.json", "{\"eos_token_id\": [2, \"x\"]}"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), good().to_string()).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(".json"), "{error}");
    }
}

/// Every value of a real file replaced, one at a time, by each of a few odd ones: a verdict, never a panic.
#[test]
fn a_file_with_any_one_value_changed_gets_a_verdict() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers");
    let mut mistral: Value =
        serde_json::from_str(&std::fs::read_to_string(root.join("mistral/tokenizer.json")).unwrap()).unwrap();
    // The long lists only repeat themselves.
    let vocab = mistral["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|piece, id| id.as_u64() < Some(12) || piece == "▁" || piece == "e" || piece == "▁e");
    mistral["model"]["merges"] = json!([["▁", "e"]]);
    mistral["model"]["vocab"]["▁e"] = json!(400);
    let mut places = Vec::new();
    pointers(&mistral, String::new(), &mut places);
    let odd = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(""),
        json!("▁"),
        json!("é🎉"),
        json!([]),
        json!({}),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for place in &places {
        for value in &odd {
            let mut file = mistral.clone();
            *file.pointer_mut(place).unwrap() = value.clone();
            match load(&file) {
                Ok(tokenizer) => {
                    accepted += 1;
                    let ids = tokenizer.encode("e é▁ e\n", true).unwrap();
                    tokenizer.decode(&ids, false).unwrap();
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > 50 && refused > 200, "{accepted} {refused}");
}

fn pointers(value: &Value, at: String, places: &mut Vec<String>) {
    places.push(at.clone());
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers(inner, format!("{at}/{key}"), places);
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, inner)| pointers(inner, format!("{at}/{i}"), places));
        }
        _ => {}
    }
}
