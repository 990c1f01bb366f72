//! Streaming: whatever the decoder and the ids, the pieces together are the decoding of all ids at once, and no piece ends
//! inside a character.

use proptest::prelude::*;
use serde_json::{Value, json};
use zamba::tokenizer::Tokenizer;

/// A vocabulary with every kind of token that the decoders treat specially.
fn pieces() -> Vec<String> {
    let mut pieces: Vec<String> = [
        "<unk>", "<s>", "▁", "▁▁", "▁a", "b▁", "##b", "##", "a</w>", "</w>", "Ġ", "Ġa", "Ċ", "Ã", "©", "âĤ",
        "¬", "ðŁ", "İ", "ĩ",
    ]
    .map(str::to_owned)
    .to_vec();
    pieces.extend(
        ["é", "日", " ", "  x", "|", "<pad>", ".", "n't", "\u{FFFD}", "<0x+F>", "<0xZZ>", "e", "Ġ日"]
            .map(str::to_owned),
    );
    pieces.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    pieces
}

fn load(decoder: &Value, config: &Value, kind: &str) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        pieces().into_iter().enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let model = match kind {
        "BPE" => json!({"type": "BPE", "vocab": vocab, "merges": []}),
        _ => json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}),
    };
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let file = json!({"version": "1.0", "added_tokens": [special(0, "<unk>"), special(1, "<s>")], "model": model,
                      "decoder": decoder});
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}

fn tokenizers() -> Vec<Tokenizer> {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let regex = json!({"type": "Replace", "pattern": {"Regex": "[ab]+"}, "content": "<>"});
    let strip = |start: u32| json!({"type": "Strip", "content": " ", "start": start, "stop": 0});
    let fallback = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let wordpiece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let suffix = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    let sequence = |parts: &[&Value]| json!({"type": "Sequence", "decoders": parts});
    let decoders = [
        Value::Null,
        sequence(&[&replace, &fallback, &fuse, &strip(1)]),
        sequence(&[&replace, &fallback, &fuse, &strip(3), &fuse, &strip(1)]),
        sequence(&[&strip(1), &replace, &fallback]),
        sequence(&[&fallback, &metaspace("always")]),
        sequence(&[&fuse, &regex]),
        sequence(&[&fuse, &metaspace("first")]),
        sequence(&[&fuse, &level]),
        sequence(&[&level, &replace]),
        sequence(&[&level, &strip(2)]),
        sequence(&[]),
        level.clone(),
        metaspace("always"),
        metaspace("never"),
        wordpiece.clone(),
        sequence(&[&fallback, &wordpiece]),
        suffix.clone(),
        ctc,
        regex.clone(),
    ];
    let mut all: Vec<Tokenizer> = decoders.iter().map(|d| load(d, &json!({}), "BPE")).collect();
    all.push(load(&wordpiece, &json!({"clean_up_tokenization_spaces": true}), "WordLevel"));
    all
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    let count = pieces().len() as u32;
    let byte = |b: u8| count - 256 + u32::from(b);
    // UTF-8 of "€" and "🎉" in order makes whole characters likely; the rest is anything, unknown ids too.
    let utf8 = prop::sample::select(vec![
        "€".bytes().map(byte).collect::<Vec<u32>>(),
        "🎉".bytes().map(byte).collect(),
        "é".bytes().map(byte).collect(),
    ]);
    let run = prop_oneof![
        4 => (0..count - 256).prop_map(|id| vec![id]),
        2 => (0..count + 3).prop_map(|id| vec![id]),
        2 => utf8.clone(),
        1 => utf8.prop_map(|mut run| { run.pop(); run }),
    ];
    prop::collection::vec(run, 0..12).prop_map(|runs| runs.concat())
}

#[test]
fn pieces_together_equal_decoding_at_once() {
    let tokenizers = tokenizers();
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let check = |ids: Vec<u32>| {
        for (place, tokenizer) in tokenizers.iter().enumerate() {
            for skip in [false, true] {
                let expected = tokenizer.decode(&ids, skip).unwrap();
                let mut stream = tokenizer.stream(skip);
                // The second round shows that a finished stream starts afresh.
                for _ in 0..2 {
                    let mut text = String::new();
                    for (at, &id) in ids.iter().enumerate() {
                        if let Some(piece) = stream.push(id).unwrap() {
                            prop_assert!(!piece.is_empty());
                            text.push_str(&piece);
                            prop_assert!(
                                expected.starts_with(&text),
                                "decoder {place}: {text:?} {expected:?}"
                            );
                        }
                        if at == ids.len() / 2 {
                            let so_far = tokenizer.decode(&ids[..=at], skip).unwrap();
                            let held = stream.held().unwrap().unwrap_or_default();
                            prop_assert_eq!(format!("{}{}", text, held), so_far, "decoder {} holds", place);
                        }
                    }
                    text.extend(stream.finish().unwrap());
                    prop_assert_eq!(&text, &expected, "decoder {}", place);
                }
            }
        }
        Ok(())
    };
    runner.run(&ids(), check).unwrap();
}

#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let tokenizers = tokenizers();
    let count = pieces().len() as u32;
    let id = |piece: &str| pieces().iter().position(|p| p == piece).unwrap() as u32;
    let byte = |b: u8| count - 256 + u32::from(b);

    let mut level = tokenizers[11].stream(false);
    assert_eq!(level.push(id("Ã")).unwrap(), None);
    assert_eq!(level.push(id("©")).unwrap().as_deref(), Some("é"));
    assert_eq!(level.push(id("Ġa")).unwrap().as_deref(), Some(" a"));
    assert_eq!(level.push(id("âĤ")).unwrap(), None);
    assert_eq!(level.push(id("e")).unwrap().as_deref(), Some("\u{FFFD}e"));
    assert_eq!(level.push(id("ðŁ")).unwrap(), None);
    assert_eq!(level.finish().unwrap().as_deref(), Some("\u{FFFD}"));

    let mut mistral = tokenizers[1].stream(false);
    assert_eq!(mistral.push(id("▁a")).unwrap().as_deref(), Some("a"));
    assert_eq!(mistral.push(id("▁a")).unwrap().as_deref(), Some(" a"));
    assert_eq!(mistral.push(byte(0xC3)).unwrap(), None);
    assert_eq!(mistral.push(byte(0xA9)).unwrap(), None);
    assert_eq!(mistral.push(id("e")).unwrap().as_deref(), Some("ée"));
    assert_eq!(mistral.finish().unwrap(), None);
}

#[test]
fn trained_tokenizers_stream_any_text() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers");
    let tokenizers: Vec<Tokenizer> = ["byte_level", "mistral", "llama_first"]
        .iter()
        .map(|n| Tokenizer::from_dir(&root.join(n)).unwrap())
        .collect();
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let text = prop_oneof!["[ a-zé日🎉\n▁]{0,40}", any::<String>()];
    let check = |text: String| {
        for (place, tokenizer) in tokenizers.iter().enumerate() {
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert!(ids.iter().all(|&id| id <= tokenizer.max_id()));
            let expected = tokenizer.decode(&ids, true).unwrap();
            let mut stream = tokenizer.stream(true);
            let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
            streamed.extend(stream.finish().unwrap());
            prop_assert_eq!(&streamed, &expected);
            // A byte-level vocabulary gives every text back.
            if place == 0 {
                prop_assert_eq!(&streamed, &text);
            }
        }
        Ok(())
    };
    runner.run(&text, check).unwrap();
}
